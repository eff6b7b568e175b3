"""What each command does once its arguments are read: a file each, imported when its command is given."""
