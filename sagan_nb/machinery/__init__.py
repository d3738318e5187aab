"""Files, folders, jobs and commands, written by hand: nothing here is in the paper."""
