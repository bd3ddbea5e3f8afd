"""What each arm costs, when a rented machine pays, and where the rows go. Pure: no disk, clock or network."""
