"""Work on captures that are at rest: compaction, compression, and the process that does it unasked."""
