"""What a variant's process begins with, before anything large is imported: it listens, and ends when nobody can tell it anything."""

import json
import os
import queue
import signal
import sys
import threading
from importlib import import_module
from typing import Any


def main() -> None:
    """Lines of JSON on stdin are what is to be done; the last argument is what to do it with."""
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    import_module("mkc.bench.child").main(json.loads(sys.argv[1]), told)


def _listen(told: "queue.Queue[dict[str, Any]]") -> None:
    """Until whoever asks is gone: then nothing of this process is to stay, a compiler that it has begun included."""
    for line in sys.stdin:
        told.put(json.loads(line))
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
