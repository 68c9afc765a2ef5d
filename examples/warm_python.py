"""Warm one Python up, then fork it 16 times: each fork resumes there, with a separate question."""

import ramet.sync

SERVE = """import json, sqlite3, ssl  # imported once, for all forks
while True: print(eval(open("/tmp/in").read()), file=open("/tmp/out", "w"))"""
ASK = 'echo "$0" > /tmp/in; cat /tmp/out'

with ramet.sync.Host() as host:
    host.pull("python:3.13-slim")
    vm = host.run("python:3.13-slim", idle=True)  # boots; the next run is a fork of that boot
    vm.exec("mkfifo", "/tmp/in", "/tmp/out", check=True)
    vm.spawn("python3", "-c", SERVE)
    vm.exec("sh", "-c", ASK, "sqlite3.sqlite_version", check=True)  # now it is warm
    with vm.template().fork(16) as forks:
        print([int(fork.exec("sh", "-c", ASK, f"{n} ** 3").text) for n, fork in enumerate(forks)])
        print(f"over {len({fork.receipt.memory.inode for fork in forks})} file of memory")
