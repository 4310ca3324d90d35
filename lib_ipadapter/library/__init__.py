"""What lies on disk: files' headers, what they are, where they are searched. No torch here."""
