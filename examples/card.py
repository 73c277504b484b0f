#!/usr/bin/env python3
"""Gives a process of one's own a network card on a bridge of the host, by usernet or by lxc-user-nic.

    card.py BRIDGE [NAME]

Makes a user and a network namespace, has the card made, and shows it. lxc-user-nic prints exactly one line,
NAME:IFINDEX:HOST_NAME:HOST_IFINDEX, and nothing else on success. The card goes with the namespace.
"""
import os
import subprocess
import sys


def main() -> int:
    if len(sys.argv) not in (2, 3):
        print("usage: card.py BRIDGE [NAME]", file=sys.stderr)
        return 64
    bridge, name = sys.argv[1], (sys.argv[2:] or ["eth0"])[0]
    # The namespaces of a process that waits. `unshare --map-root-user` needs no helper: one id is enough for a card.
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo ready; read go && ip -brief link"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    if holder.stdout.readline() != "ready\n":
        return holder.wait() or 1
    # unshare has executed the shell in its place, so its pid is that of the process in the namespace.
    made = subprocess.run(
        ["lxc-user-nic", "create", "/dev/null", "example", str(holder.pid), "veth", bridge, name],
        stdout=subprocess.PIPE, text=True, check=False,
    )
    if made.returncode != 0:
        holder.stdin.close()
        holder.wait()
        return made.returncode
    inside, _, host, _ = made.stdout.rstrip("\n").split(":")
    print(f"card.py: {inside} inside is {host} on the host")
    print(holder.communicate("go\n")[0], end="")
    return holder.returncode


if __name__ == "__main__":
    sys.exit(main())
