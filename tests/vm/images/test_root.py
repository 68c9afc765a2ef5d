"""The root of a container image's guest: what is mounted, what the agent writes, and what it costs."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import AsyncIterator, Iterator

import pytest

from ramet.errors import ExecError, GuestError
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.machine import RootKind
from ramet.guest.messages import ExecRequest
from tests.support.container_guest import (
    DIR,
    LINK,
    ContainerGuest,
    booted,
    busybox_layer,
    identity,
    make_image,
    shell,
)
from tests.unit.images.layer_tars import Member, member

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(180)]

LARGE = bytes(range(256)) * 12_000
CERTIFICATE = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
OLD = CERTIFICATE.format("T0xE")


def nasty_layer() -> list[Member]:
    """What images have, and some that only an enemy's has, in the places that the agent writes to."""
    return [
        member("etc", DIR, mode=0o755),
        member("etc/passwd", data=b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"),
        member("etc/group", data=b"root:x:0:\nwheel:x:10:app\naudio:x:29:app"),
        member("etc/hosts", tarfile.FIFOTYPE),
        member("etc/hosts.ramet-new", tarfile.FIFOTYPE),
        member("etc/hostname", LINK, link="/bin/busybox"),
        member("etc/hostname.ramet-new", LINK, link="/bin/busybox"),
        member("etc/machine-id", LINK, link="/dev/null"),
        member("etc/resolv.conf", LINK, link="../run/systemd/resolve/stub-resolv.conf"),
        member("etc/ssl/certs/ca-certificates.crt", data=OLD.encode().rstrip(b"\n")),
        member("etc/ssl/cert.pem", LINK, link="certs/ca-certificates.crt"),
        member("etc/ssl/ca-bundle.pem", tarfile.FIFOTYPE),
        member("usr/lib/ssl", DIR, mode=0o755),
        member("run/postgresql", DIR, mode=0o2775),
        member("dev", LINK, link="etc"),
        member("proc", data=b"no directory"),
        member("opt/tree/file", data=LARGE, mode=0o4755),
        member("home/app", DIR, mode=0o700, owner=(1000, 1001)),
    ]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerGuest]:
    directory = tmp_path_factory.mktemp("root")
    devices = make_image(directory / "image", [busybox_layer(), nasty_layer()], shared=(0, 1))
    with booted(directory / "guest", devices) as running:
        yield running


@pytest.fixture
async def agent(guest: ContainerGuest) -> AsyncIterator[AgentClient]:
    async with guest.session() as client:
        yield client


async def test_the_image_is_the_root_and_nothing_hides_it(agent: AgentClient) -> None:
    mounts = [line.split() for line in (await shell(agent, "cat /proc/mounts")).splitlines()]
    kinds = {place: kind for _, place, kind, *_ in mounts}
    assert kinds["/"] == "overlay"
    assert (kinds["/dev"], kinds["/proc"], kinds["/sys"]) == ("devtmpfs", "proc", "sysfs")
    assert not {"/run", "/tmp", "/etc/hosts", "/etc/resolv.conf"} & set(kinds)
    [options] = [words[3].split(",") for words in mounts if words[1] == "/"]
    assert {"metacopy=on", "redirect_dir=on"} <= set(options)
    assert not {"nosuid", "nodev", "noexec"} & set(options)
    assert await shell(agent, "stat -c '%a %F' /run/postgresql /tmp /opt/tree/file /dev/shm") == "\n".join(
        ("2775 directory", "1777 directory", "4755 regular file", "1777 directory")
    )
    assert (await shell(agent, "sha256sum /opt/tree/file")).split()[0] == hashlib.sha256(LARGE).hexdigest()


async def test_what_the_agent_writes_replaces_links_and_fifos(agent: AgentClient) -> None:
    busybox = await shell(agent, "sha256sum /bin/busybox")
    local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback"
    for number in (7, 8):  # the second writes into the files of the first, as every fork does
        reply = await agent.identity(identity(number))
        assert (reply.hostname, reply.generation) == (f"fork-{number}", number)
        assert await shell(agent, "cat /etc/hosts") == f"{local}\n127.0.1.1\tfork-{number}"
        assert await shell(agent, "cat /etc/hostname /etc/machine-id /run/ramet/generation; hostname") == (
            f"fork-{number}\n{number:032x}\n{number}\nfork-{number}"
        )
    names = "/etc/hosts /etc/hostname /etc/machine-id /etc/resolv.conf"
    assert set((await shell(agent, f"stat -c %F {names}")).splitlines()) == {"regular file"}
    assert await shell(agent, "sha256sum /bin/busybox") == busybox
    assert await shell(agent, "grep -v '^#' /etc/resolv.conf || true") == ""


async def test_owners_and_names_cost_no_copies(agent: AgentClient) -> None:
    """`metacopy` and `redirect_dir`: chown copies no data, and a directory of the image can be renamed."""
    before = await agent.root_space()
    await shell(agent, "chown -R 5:5 /opt/tree && mv /opt/tree /opt/moved")
    assert await shell(agent, "stat -c %u:%s /opt/moved/file") == f"5:{len(LARGE)}"
    after = await agent.root_space()
    assert before is not None
    assert after is not None
    assert before.free_bytes - after.free_bytes < len(LARGE) / 10
    assert (
        await shell(agent, "sha256sum /opt/moved/file")
        == f"{hashlib.sha256(LARGE).hexdigest()}  /opt/moved/file"
    )
    await shell(agent, "mv /opt/moved /opt/tree && chown -R 0:0 /opt/tree")


async def test_users_are_those_of_the_image(agent: AgentClient) -> None:
    shown = "id -u; id -g; id -G; echo $HOME; pwd"
    assert await shell(agent, shown, user="app") == "1000\n1001\n1001 10 29\n/home/app\n/home/app"
    assert await shell(agent, shown, user="1000:audio", cwd="/") == "1000\n29\n29\n/home/app\n/"
    assert await shell(agent, "pwd", user="4000", cwd="/home/app") == "/home/app"  # as runc: entered as root
    with pytest.raises(ExecError, match="no such user: other"):
        await shell(agent, "true", user="other")


async def test_the_kernel_finds_its_modules_outside_the_image(agent: AgentClient) -> None:
    """Its threads keep the initramfs as their root: a filesystem's module comes when it is first mounted."""
    assert "fuse" not in await shell(agent, "cat /proc/modules")
    with pytest.raises(AssertionError, match="Invalid argument"):
        await shell(agent, "mkdir -p /mnt; mount -t fuse -o fd=9 none /mnt")
    assert "fuse" in await shell(agent, "cat /proc/modules /proc/filesystems")


async def test_a_program_can_have_a_user_namespace(agent: AgentClient) -> None:
    """The kernel refuses that to processes whose root isn't their mount namespace's."""
    assert await shell(agent, "unshare -Ur id -u", user="app") == "0"


async def test_certificates_are_trusted_once(agent: AgentClient) -> None:
    new = [CERTIFICATE.format(text) for text in ("TkVX", "TkVXRVI=")]
    for asked in (new, new, new[:1], new[1:]):
        assert await agent.trust(asked) == ("/etc/ssl/certs/ca-certificates.crt",)
        assert await shell(agent, "cat /etc/ssl/cert.pem") == (OLD + "".join(new)).strip()
    assert await shell(agent, "readlink /usr/lib/ssl/cert.pem") == "/etc/ssl/certs/ca-certificates.crt"
    sources = await shell(agent, "cat /usr/local/share/ca-certificates/ramet-*.crt")
    assert sorted(sources.split()) == sorted("".join(new).split())
    assert (await agent.trust([OLD]))[0] == "/etc/ssl/certs/ca-certificates.crt"
    assert (await shell(agent, "cat /etc/ssl/cert.pem")).count("T0xE") == 1


async def test_a_full_root_names_what_gives_it_room(agent: AgentClient) -> None:
    room = await agent.root_space()
    assert room is not None
    assert (room.kind, room.total_bytes) == (RootKind.RAM, 32 << 20)
    result = await run_exec(agent, ExecRequest(("dd", "if=/dev/zero", "of=/full", "bs=64k")))
    assert b"No space left on device" in result.stderr
    try:
        full = await agent.root_space()
        assert full is not None
        assert full.free_bytes == 0
        with pytest.raises(GuestError, match=r"No space left on device.*--rootfs ram:SIZE"):
            await agent.trust([CERTIFICATE.format("QUFB" * 4000)])
        assert (await agent.identity(identity(9))).hostname == "fork-9"  # in place: a fork needs no room
    finally:
        await shell(agent, "rm /full")
