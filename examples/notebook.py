# %% [markdown]
# # Fork guests from a notebook
#
# `ramet.sync` needs no `async` and no `await`: each call returns when its work is done.

# %%
from contextlib import ExitStack

import ramet.sync

# %% [markdown]
# Open a Host and leave it open for all cells.
# An `ExitStack` does in two cells what `with` does in one.

# %%
cleanup = ExitStack()
host = cleanup.enter_context(ramet.sync.Host())

# %% [markdown]
# Boot a guest and prepare it.
# `check=True` raises an error when a command fails.

# %%
vm = host.run("builtin", name="lab")
vm.exec("sh", "-c", "seq 100000 > /srv/data", check=True)
vm.info().state

# %% [markdown]
# Branch the guest while it runs.
# Each branch starts with the memory and the files that `lab` has now.

# %%
branches = vm.fork(3, name="trial")
[branch.name for branch in branches]

# %% [markdown]
# Try something different in each branch.
# Run this cell again after you have changed it: the branches are still there.

# %%
for branch, program in zip(branches, ("gzip", "bzip2", "lzop"), strict=True):
    size = branch.exec("sh", "-c", f"{program} -c /srv/data | wc -c", check=True).text.strip()
    print(f"{branch.name}: {program} leaves {size} bytes")

# %% [markdown]
# Take a snapshot, make a mistake, and go back.

# %%
snapshot = vm.snapshot("before")
vm.exec("rm", "/srv/data", check=True)
vm.rewind("before")
print(vm.exec("wc", "-l", "/srv/data", check=True).text.strip())

# %% [markdown]
# Keep one branch, which removes the other two.

# %%
best = branches[1].keep()
[instance.name for instance in host.list()]

# %% [markdown]
# Clean up.
# The Host removes what it made: `lab`.
# A kept branch and a snapshot stay until you remove them.
# If Jupyter's kernel is restarted before this cell, the Host's guests end within 5 seconds.

# %%
best.remove(force=True)
snapshot.remove()
cleanup.close()
