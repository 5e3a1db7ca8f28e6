"""How often the verdict is wrong, and how small a fault it sees."""
