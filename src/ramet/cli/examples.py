"""Examples for the help of each command. A test parses every one, and runs those that need no guest."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final = {
    "": [
        ("Check this machine", "ramet doctor"),
        ("Boot a guest, then run a command in it", "ramet run --name box builtin"),
        ("", "ramet exec box -- uname -a"),
        ("Fork the running guest eight times", "ramet fork box -n 8"),
        ("List all instances, then remove one", "ramet ps -a"),
        ("", "ramet rm -f box"),
    ],
    "doctor": [
        ("Check this machine", "ramet doctor"),
        (
            "Print the names of the drivers that work",
            "ramet doctor --json | jq -r '.drivers[] | select(.usable).name'",
        ),
    ],
    "demo": [
        ("Boot a guest and fork it into 8", "ramet demo"),
        ("Fork a guest of 1 GiB into 32", "ramet demo --forks 32 --memory 1G"),
    ],
    "run": [
        ("Boot a guest named box", "ramet run --name box builtin"),
        ("Run one command, then remove the guest", "ramet run --rm builtin -- uname -a"),
        ("Run a program of a container image", "ramet run --rm python:3.13-slim python --version"),
        ("Run a server in the background", "ramet run -d --name db -e POSTGRES_PASSWORD=x postgres:17"),
        ("Keep a guest of an image, and work in it", "ramet run --idle --name dev debian:12"),
        (
            "Boot with 1 GiB of RAM, two CPUs and a disk",
            "ramet run --memory 1G --cpus 2 --disk 4G:/data builtin",
        ),
    ],
    "ps": [
        ("List what runs", "ramet ps"),
        ("List everything with a label", "ramet ps -a --filter team=eval"),
        ("Print the ids of all templates", "ramet ps -q --filter state=template"),
    ],
    "tree": [("Show forks below their sources", "ramet tree")],
    "inspect": [
        ("Show everything about box", "ramet inspect box"),
        ("Print the pid of its VMM", "ramet inspect box --json | jq .pid"),
    ],
    "logs": [
        ("Print the end of the console", "ramet logs box"),
        ("Follow the console until box stops", "ramet logs -f box"),
    ],
    "stats": [("Measure all instances", "ramet stats"), ("Measure one", "ramet stats box")],
    "disk resize": [("Give the disk of box 20 GiB in all", "ramet disk resize box disk 20G")],
    "wait": [("Wait until box stops", "ramet wait box")],
    "exec": [
        ("Run a command", "ramet exec box -- uname -a"),
        ("Feed a script from standard input", "ramet exec box -- sh < setup.sh"),
        ("Set a variable and a limit of 10 s", "ramet exec -e SEED=7 --timeout 10 box -- sh -c 'echo $SEED'"),
    ],
    "stop": [
        ("Power box off", "ramet stop box"),
        ("End it at once", "ramet stop --timeout 0 box"),
    ],
    "start": [("Boot box again, with its disks", "ramet start box")],
    "pause": [("Stop the CPUs of two instances", "ramet pause box other")],
    "resume": [("Resume box", "ramet resume box")],
    "standby": [("Free the memory of box", "ramet standby box")],
    "restore": [("Restore box from standby", "ramet restore box")],
    "rm": [
        ("Remove a stopped instance", "ramet rm box"),
        ("Remove an instance that runs", "ramet rm -f box"),
        ("Remove the stopped instances with a label", "ramet rm $(ramet ps -aq --filter team=eval)"),
    ],
    "template": [
        ("Make box a template, then fork it", "ramet template box"),
        ("", "ramet fork box -n 8"),
    ],
    "fork": [
        ("Fork a template or a running guest", "ramet fork box"),
        ("Fork a snapshot 100 times, named w-1 to w-100", "ramet fork box/base -n 100 --name w"),
        ("Print ids for a script", "ramet fork box -n 8 -q"),
    ],
    "keep": [("Keep the best of several forks", "ramet keep w-3")],
    "rewind": [
        ("Undo everything since the last snapshot", "ramet rewind box"),
        ("Return to a named snapshot", "ramet rewind box base"),
    ],
    "serve": [("Keep at most 16 VMMs ready", "ramet serve --warm 16")],
    "pool": [("List the VMMs that are ready", "ramet pool")],
    "snapshot create": [
        ("Take a snapshot named base", "ramet snapshot create --name base box"),
        ("Add a label", "ramet snapshot create --label step=40 box"),
    ],
    "snapshot ls": [
        ("List all snapshots", "ramet snapshot ls"),
        ("List those of box", "ramet snapshot ls box"),
    ],
    "snapshot inspect": [("Show everything about a snapshot", "ramet snapshot inspect box/base")],
    "snapshot rm": [("Remove a snapshot", "ramet snapshot rm box/base")],
    "snapshot verify": [("Check a snapshot", "ramet snapshot verify box/base")],
    "snapshot compress": [
        ("Compress a snapshot", "ramet snapshot compress box/base"),
        ("Make it as small as possible", "ramet snapshot compress --level 19 box/base"),
    ],
    "snapshot decompress": [("Undo a compression", "ramet snapshot decompress box/base")],
    "snapshot export": [
        ("Write a snapshot to a file", "ramet snapshot export box/base base.ramet"),
        (
            "Copy a snapshot to another machine",
            "ramet snapshot export box/base - | ssh host ramet snapshot import -",
        ),
    ],
    "snapshot import": [
        ("Import a file", "ramet snapshot import base.ramet"),
        ("Import it under another name", "ramet snapshot import --name fresh base.ramet"),
    ],
    "pull": [
        ("Pull an image from Docker Hub", "ramet pull python:3.13-slim"),
        ("Pull one from another registry", "ramet pull registry.example.com/team/app:1.4"),
    ],
    "image pull": [("Pull an image from Docker Hub", "ramet image pull python:3.13-slim")],
    "image import": [
        ("Import what docker built", "docker save app | ramet image import --name app -"),
        ("Import a directory, or an archive, as a root", "ramet image import --name app rootfs.tar"),
    ],
    "image push": [("Push an image to a registry", "ramet image push app registry.example.com/team/app:1.4")],
    "image ls": [("List images", "ramet image ls")],
    "image inspect": [
        ("Show the configuration and the layers of an image", "ramet image inspect python:3.13-slim"),
        ("Print its digest", "ramet image inspect --json app | jq -r .digest"),
    ],
    "image rm": [("Remove a name, and the image with its last name", "ramet image rm app:1.3")],
    "image prune": [("Remove images without a name, and downloads", "ramet image prune")],
    "kernel ls": [("List kernels, the one in use first", "ramet kernel ls")],
    "kernel add": [("Add a Debian kernel", "ramet kernel add linux-image-6.12.48+deb13-cloud-amd64.deb")],
}
"""By command: a caption, or nothing for a line that belongs to the one before, and a line for a shell."""


def epilog(command: str) -> str:
    """Lay the examples of a command out for the end of its help."""
    lines = ["\b", "Examples:"]
    for caption, example in EXAMPLES[command]:
        if caption:
            lines.append(f"  # {caption}")
        lines.append(f"  {example}")
    return "\n".join(lines)
