"""Blocks: subjects that are refused or challenged until an instant, by an operator or a detector."""

from shield.block.book import Block, BlockBook, Subject

__all__ = ["Block", "BlockBook", "Subject"]
