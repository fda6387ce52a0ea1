"""Files written whole, read with care, locked, verified; where they lie and who made them."""
