"""The command line: ``cameleer run``, ``watch``, ``drivers`` and ``gc``."""
