#!/usr/bin/env python3
"""A double of a real nvidia-smi: records how it was called into $RECORD, replays $REPLAY_OUT, $REPLAY_ERR and $REPLAY_CODE."""

import json
import os
import signal
import sys
import time
from pathlib import Path

Path(os.environ["RECORD"]).write_text(
    json.dumps(
        {
            "argv": sys.argv[1:],
            "pid": os.getpid(),
            "stdin": sys.stdin.read() if not sys.stdin.isatty() else "",
        }
    )
)
sys.stdout.buffer.write(os.environ.get("REPLAY_OUT", "").encode())
sys.stderr.buffer.write(os.environ.get("REPLAY_ERR", "").encode())
sys.stdout.flush()
if os.environ.get("REPLAY_FOREVER"):
    signal.signal(signal.SIGINT, lambda *_: os._exit(42))
    print("looping", flush=True)
    while True:
        time.sleep(0.05)
sys.exit(int(os.environ.get("REPLAY_CODE", "0")))
