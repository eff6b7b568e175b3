"""What runs leave behind: written, read, compared, drawn and checked."""
