"""The verbs of the command line beside ``train``, one file each."""
