"""The command line: one module per command, whose imports wait until the command runs; all printing is done here."""
