"""Another process that adopts a VM under test, as a ramet that is started later does.

`python -m ramet.testing.driver_contract.another_process adopt|die MODULE:CLASS DIRECTORY PROCESS MACHINE`
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import anyio
import msgspec

from ramet.drivers.interface import Driver, Vmm
from ramet.model.record import Machine, ProcessRef
from ramet.system.pause_watchdog import resume_on_death
from ramet.testing.driver_contract.subject import Running, Subject


def start(verb: str, subject: Subject, vm: Running) -> subprocess.Popen[str]:
    """Start the other process. Its driver is made anew, from the class of the subject's."""
    kind = type(subject.driver)
    described = (msgspec.json.encode(item).decode() for item in (vm.vmm.process, vm.machine))
    # The class may be one of a folder of tests, which only this process finds.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    driver = f"{kind.__module__}:{kind.__qualname__}"
    return subprocess.Popen(
        [sys.executable, "-m", __name__, verb, driver, str(vm.directory), *described],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def _attach(name: str, directory: Path, process: str, machine: str) -> Vmm:
    module, _, kind = name.partition(":")
    driver: Driver = getattr(import_module(module), kind)()
    await driver.version()
    return driver.attach(
        directory,
        msgspec.json.decode(process, type=ProcessRef),
        msgspec.json.decode(machine, type=Machine),
    )


async def adopt(directory: Path, vmm: Vmm) -> None:
    """Pause, resume and kill a VM that another process has started. Prints its status after each step."""
    statuses = [await vmm.status()]
    await vmm.pause()
    statuses.append(await vmm.status())
    await vmm.resume()
    statuses.append(await vmm.status())
    print(*statuses)
    await vmm.kill()


async def die(directory: Path, vmm: Vmm) -> None:
    """Pause a VM and wait to be killed. Prints the pid of the process that resumes the VM then."""
    async with resume_on_death(directory, vmm.resume_steps()) as resumer, vmm.session():
        await vmm.pause()
        assert await vmm.status() == "paused"
        print(resumer.pid, flush=True)
        await anyio.sleep(300)


async def _main(verb: str, driver: str, directory: str, process: str, machine: str) -> None:
    vmm = await _attach(driver, Path(directory), process, machine)
    await {"adopt": adopt, "die": die}[verb](Path(directory), vmm)


if __name__ == "__main__":
    anyio.run(lambda: _main(*sys.argv[1:]))
