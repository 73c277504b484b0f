#!/usr/bin/env python3
"""Starts a container with spawn, acts while it waits, then lets it go.

    start.py ROOTFS COMMAND [ARGUMENT...]

spawn writes one JSON object a line on --info-fd: created (with pid), mapped, network, running, exited. With --hold-fd it
waits, after network, for one byte; end of file means give up. Between the two the container has its namespaces and no
command yet: whatever a runtime wants to do to it from outside is done here. This example prints its id map.
"""
import json
import os
import subprocess
import sys


def main() -> int:
    if len(sys.argv) < 3:
        print("usage: start.py ROOTFS COMMAND [ARGUMENT...]", file=sys.stderr)
        return 125
    rootfs, command = sys.argv[1], sys.argv[2:]
    info_read, info_write = os.pipe()
    hold_read, hold_write = os.pipe()
    spawn = subprocess.Popen(
        ["spawn", "run", f"--info-fd={info_write}", f"--hold-fd={hold_read}", rootfs, "--", *command],
        pass_fds=(info_write, hold_read),
    )
    os.close(info_write)
    os.close(hold_read)
    pid = None
    with os.fdopen(info_read) as info:
        for line in info:
            state = json.loads(line)
            print("start.py:", state["state"], file=sys.stderr)
            if state["state"] == "created":
                pid = state["pid"]
            elif state["state"] == "network":
                with open(f"/proc/{pid}/uid_map") as uid_map:
                    print("start.py: uid_map", *uid_map.read().split(), file=sys.stderr)
                os.write(hold_write, b"g")
            elif state["state"] == "failed":
                # The same words are on spawn's standard error.
                break
    os.close(hold_write)
    return spawn.wait()


if __name__ == "__main__":
    sys.exit(main())
