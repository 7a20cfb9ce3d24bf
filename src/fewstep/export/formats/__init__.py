"""Export formats, one a file; another package adds one by an entry point of `fewstep.formats`."""
