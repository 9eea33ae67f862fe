"""The group of a model's symmetries, its elements, and how they act on values. torch only."""
