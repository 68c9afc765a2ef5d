"""The command line without a guest, or with one that only has to be there: words, output, streams, doctor."""
