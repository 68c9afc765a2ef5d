"""An emulated machine whose KVM runs Linux, and the tests that run inside."""
