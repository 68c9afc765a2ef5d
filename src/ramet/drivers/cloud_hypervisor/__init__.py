"""The Cloud Hypervisor driver."""
