"""What all commands of the line share: their arguments, how ranks are started, and how a command ends."""
