"""Both ends of the guest's protocol, fuzzed."""
