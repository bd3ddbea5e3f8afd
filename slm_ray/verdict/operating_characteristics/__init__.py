"""How often the verdict is wrong and how often it helps, simulated with the code that judges a real comparison."""
