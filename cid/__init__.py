"""Identity-robust face models without identity labels: conditional inverse density (CID)."""

__version__ = "0.1.0"
