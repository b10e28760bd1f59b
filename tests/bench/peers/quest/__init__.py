"""Quest (arXiv 2406.10774): decode attention over the pages of largest upper bound, as a yardstick.

Pages of 16 tokens, element-wise smallest and largest keys of each (section 3.2). All layers are sparse. The
query heads of a KV head share their pages, so that each KV head reads its budget: their bounds, made a
distribution by a softmax each, are added. The first page and the last one count and are always read.
"""

from peers.quest.naive import PAGE, Pages, attend_pages, build_pages, choose_pages
from peers.quest.runner import QuestRunner

__all__ = ["PAGE", "Pages", "QuestRunner", "attend_pages", "build_pages", "choose_pages"]
