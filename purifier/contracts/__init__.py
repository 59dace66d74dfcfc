"""What a purifier author writes, and how it is found and stored."""
