"""What every other package of the project shares; it imports none of them."""
