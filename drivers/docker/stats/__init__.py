"""What a container used: from its control group, or from its engine."""
