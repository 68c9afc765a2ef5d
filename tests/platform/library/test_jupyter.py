"""A notebook: top-level `await` over several cells, ramet.sync in a cell, a cell that is interrupted, and
nested event loops.

Jupyter is installed for this, into an environment of its own.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tools.record_notebook import install_jupyter, jupyter_environment

CELLS = [
    "import asyncio, ramet, ramet.sync",
    # Each cell may be another task.
    "host = await ramet.Host().__aenter__()",
    "vm = await host.run('builtin', name='warm')\nprint((await vm.exec('hostname')).text.strip())",
    "base = await vm.template()",
    "async with base.fork(2) as forks:\n"
    "    print([result.text.strip() for result in await forks.exec('hostname')])",
    "with ramet.sync.Host() as plain:\n"
    "    with plain.get('warm').fork(2) as forks:\n"
    "        print([result.text.strip() for result in forks.exec('hostname')])",
    "kept = ramet.sync.Host().__enter__()\nfork = kept.get('warm').fork(1, name='kept')[0]",
    # INTERRUPTED
    "fork.exec('sleep', '1000')",
    "print(fork.exec('hostname').text.strip())\nkept.__exit__(None, None, None)",
    "waiting = asyncio.create_task(vm.wait())\n(await base.fork(1, name='waited-for'))[0]",
    "log = (await host.get('waited-for')).follow_logs()",
    "await host.__aexit__(None, None, None)",
    "try:\n    await vm.info()\nexcept ramet.UsageError as error:\n    print(error.message)",
    "import nest_asyncio\nnest_asyncio.apply()",
    "async def nested():\n"
    "    async with ramet.Host() as host:\n"
    "        vm = await host.run('builtin')\n"
    "        with ramet.sync.Host() as plain:\n"
    "            return (await vm.exec('echo', 'nested')).text.strip(), len(plain.list())\n"
    "print(asyncio.run(nested()))",
]
INTERRUPTED = 7
RUN = """
import json, sys
import nbformat
from nbclient import NotebookClient
cells = [nbformat.v4.new_code_cell(source) for source in json.loads(sys.argv[1])]
cells[int(sys.argv[2])].metadata["tags"] = ["raises-exception"]
notebook = nbformat.v4.new_notebook(cells=cells)
NotebookClient(
    notebook, kernel_name="python3", interrupt_on_timeout=True,
    timeout_func=lambda cell: 3 if cell is cells[int(sys.argv[2])] else 120,
).execute()
print(json.dumps([
    "".join(output.get("text", "") or output.get("ename", "") for output in cell.outputs).strip()
    for cell in notebook.cells
]))
"""


@pytest.mark.vm
@pytest.mark.deep
@pytest.mark.timeout(900)
def test_a_notebook(home: Path, tmp_path: Path) -> None:
    try:
        python = install_jupyter(tmp_path)
    except RuntimeError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [python, "-c", RUN, json.dumps(CELLS), str(INTERRUPTED)],
        env=jupyter_environment(tmp_path, home),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [text for text in json.loads(done.stdout.splitlines()[-1]) if text]
    assert said == [
        "warm",
        "['warm-1', 'warm-2']",
        "['warm-1', 'warm-2']",
        "KeyboardInterrupt",
        "kept",
        "this Host was left",
        "('nested', 1)",
    ]
