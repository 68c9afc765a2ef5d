"""ramet in other people's programs: their loops, threads, forks, interpreters and notebooks."""
