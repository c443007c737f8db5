"""Blocks: subjects that are refused, challenged or throttled until an instant, by an operator or a detector."""

from shield.block.block import Block, Subject
from shield.block.book import BlockBook
from shield.block.ledger import BlockLedger

__all__ = ["Block", "BlockBook", "BlockLedger", "Subject"]
