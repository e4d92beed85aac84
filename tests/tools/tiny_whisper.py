"""A tiny whisper.cpp model without weights, and a second of sound: a real whisper-server loads and answers with them.

Source: whisper_model_load of whisper.cpp (magic, sizes, filters, vocabulary, tensors). A file without tensors is an empty
model for tests; it hears nothing.
"""

import math
import struct
import wave
from pathlib import Path

MAGIC, WORDS, VOCABULARY, WIDTH, LAYERS = 0x67676D6C, 50_256, 51_864, 64, 4
MELS, FILTERS, RATE = 80, 201, 16_000


def write_model(path: Path) -> Path:
    """Write the model; return its path."""
    sizes = [VOCABULARY, 1500, WIDTH, 1, LAYERS, 448, WIDTH, 1, LAYERS, MELS, 1]
    with path.open("wb") as file:
        file.write(struct.pack("<I11i2i", MAGIC, *sizes, MELS, FILTERS))
        file.write(struct.pack("<f", 0.001) * (MELS * FILTERS))
        file.write(struct.pack("<i", WORDS))
        for number in range(WORDS):
            word = [" ", " -", " '"][number] if number < 3 else f" w{number}"  # those that it looks for
            file.write(struct.pack("<I", len(word)) + word.encode())
    return path


def write_sound(path: Path) -> Path:
    """Write a second of one tone; return its path."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        tone = (int(8000 * math.sin(at * 440 * math.tau / RATE)) for at in range(RATE))
        file.writeframes(b"".join(struct.pack("<h", value) for value in tone))
    return path
