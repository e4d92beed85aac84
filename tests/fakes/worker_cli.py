"""A worker double: does what its arguments say, one after another.

exit:N | die | print:TEXT | pid | env | sleep:S | stubborn | child | escape | helper:S | huge | flood | endless:BYTES
"""

import json
import os
import signal
import subprocess
import sys
import time

for word in sys.argv[1:]:
    verb, _, value = word.partition(":")
    if verb == "print":
        print(value, flush=True)
    elif verb == "env":
        print(json.dumps(dict(os.environ)), flush=True)
    elif verb == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("stubborn", flush=True)
    elif verb == "child":
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
            ]
        )
        print(f"child {child.pid}", flush=True)
    elif verb == "escape":  # a grandchild in a session of its own, whose parent ends
        script = (
            "import os,sys,time,signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nif os.fork(): sys.exit()\nos.setsid()\n"
            "print('escaped', os.getpid(), flush=True)\nos.close(1); os.close(2); time.sleep(600)"
        )
        subprocess.run([sys.executable, "-c", script], check=True)
    elif verb == "pid":
        print(os.getpid(), flush=True)
    elif verb == "helper":  # it ends when it is asked to, but takes its time
        script = (
            f"import signal,sys,time\ndef end(*_):\n time.sleep({value}); print('helper saved', flush=True); sys.exit()\n"
            "signal.signal(signal.SIGTERM, end); print('helper', flush=True); time.sleep(600)"
        )
        subprocess.Popen([sys.executable, "-c", script])
    elif verb == "flood":
        for _ in range(300_000):
            sys.stdout.write("a line of the flood\n")
        sys.stdout.flush()
    elif verb == "endless":
        for _ in range(int(value) // 100_000):
            sys.stdout.write("x" * 100_000)
        sys.stdout.flush()
    elif verb == "huge":
        sys.stdout.buffer.write(b"x" * 200_000 + b"\xff\xfe\n")
        sys.stdout.flush()
    elif verb == "sleep":
        time.sleep(float(value))
    elif verb == "exit":
        sys.exit(int(value))
    elif verb == "die":
        os.kill(os.getpid(), signal.SIGKILL)
