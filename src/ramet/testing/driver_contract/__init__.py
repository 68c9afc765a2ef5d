"""The contract of drivers, as tests that pass for every VMM, on the real VMM with real guests.

`subject` describes the driver and the guest under test, `fixtures` prepares them; `life`, `captures`,
`memory_and_disks`, `bases` and `errors` are the tests. `docs/how-to/write-a-driver.md` shows how to run them.
"""
