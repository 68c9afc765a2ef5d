"""Linux guests on KVM: on a metal host, or inside the emulated one."""
