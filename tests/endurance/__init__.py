"""Long or random: crashes at every point, hunts, many processes, Linux on an emulated KVM."""
