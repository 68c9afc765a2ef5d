"""Boot one guest, then fork it three times: three running copies share one copy of its memory."""

import ramet.sync

with ramet.sync.Host() as host:
    vm = host.run("builtin", name="warm")  # boots a small Linux guest
    vm.exec("sh", "-c", "head -c 1000000 /dev/urandom > /tmp/data", check=True)  # warm it up, once
    base = vm.template()  # its memory is now a file that forks share
    with base.fork(3) as forks:
        for fork in forks:
            words = fork.exec("sh", "-c", "hostname; md5sum /tmp/data", check=True).text.split()
            memory = fork.receipt.memory
            print(f"{words[0]}: memory {memory.mode}, inode {memory.inode}, data {words[1][:8]}")
