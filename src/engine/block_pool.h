// BlockPool: who uses which block of the paged KV cache, and which blocks can be found again by their tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "inference/types.h"

namespace xgen::engine {

using inference::TokenId;
using BlockId = std::int32_t;
inline constexpr BlockId kNoBlock = -1;

// Identifies the tokens from the start of a sequence to the end of one cached block. Never used twice, so that equal
// marks mean equal tokens: the prefix cache compares a block's own tokens and its predecessor's mark, and no collision
// of hashes can give a wrong block.
using PrefixMark = std::uint64_t;
// The mark before a sequence's first block. Sequences with different roots never share blocks.
inline constexpr PrefixMark kSharedRoot = 0;

// Ids and counts only; the memory is elsewhere. A block is
//   used    reference count > 0;
//   cached  count 0, full, findable by its tokens: waits in the free list and is evicted when its turn comes;
//   free    count 0, holds nothing: taken before any cached one;
//   absent  has no memory now: borrowed for when there is some to spare (grow), and given back (shrink).
// Every operation is O(1) (times the tokens of one block). Not thread-safe.
class BlockPool {
 public:
  // Of `num_blocks`, the first `present` have memory.
  BlockPool(int num_blocks, int block_size, int present);
  BlockPool(int num_blocks, int block_size) : BlockPool(num_blocks, block_size, num_blocks) {}

  int num_blocks() const { return static_cast<int>(blocks_.size()); }
  int block_size() const { return block_size_; }
  // Blocks that allocate() can give: free and cached.
  int available() const { return available_; }
  int absent() const { return static_cast<int>(absent_.size()); }
  int used() const { return num_blocks() - absent() - available_; }
  // Whether allocate() has a block to give that holds nothing.
  bool has_free() const { return oldest_ != kNoBlock && !published(oldest_); }

  // Gives memory to so many absent blocks; at most absent().
  void grow(int blocks);
  // Takes it from up to so many free and cached ones, least recently used first, and adds their ids to `gone`.
  void shrink(int blocks, std::vector<BlockId>& gone);

  // A block with reference count 1 that is in no cache; the least recently used cached one is evicted if none is free.
  // kNoBlock if all are used.
  BlockId allocate();
  // One more reference to a used or cached block.
  void share(BlockId block);
  // One reference less. The blocks of a sequence are released last one first: then a block is never evicted before
  // those that continue it.
  void release(BlockId block);

  // The cached or used block that holds exactly `tokens` (block_size of them) after the prefix `before`; else kNoBlock.
  BlockId find(PrefixMark before, std::span<const TokenId> tokens) const;
  // Makes a full block findable. If another block already holds the same tokens after the same prefix, nothing changes
  // and that block is returned (not shared); the caller should use it instead. Otherwise returns `block`.
  // Precondition: block is used and was not published.
  BlockId publish(BlockId block, PrefixMark before, std::span<const TokenId> tokens);
  // Precondition: the block is published.
  PrefixMark mark(BlockId block) const { return blocks_[index(block)].mark; }

  int ref_count(BlockId block) const { return blocks_[index(block)].refs; }
  bool published(BlockId block) const { return blocks_[index(block)].mark != 0; }

  // Empty if counts, free list and hash chains agree with one another; else what is wrong. O(blocks).
  std::string check_integrity() const;

 private:
  struct Block {
    std::int32_t refs = 0;
    BlockId newer = kNoBlock;  // free list, while refs == 0
    BlockId older = kNoBlock;
    BlockId next_in_bucket = kNoBlock;
    std::uint64_t hash = 0;
    PrefixMark before = 0;
    PrefixMark mark = 0;  // 0: not published
  };

  static std::size_t index(BlockId block) { return static_cast<std::size_t>(block); }
  static std::uint64_t hash(PrefixMark before, std::span<const TokenId> tokens);
  TokenId* tokens_of(BlockId block) { return tokens_.data() + index(block) * static_cast<std::size_t>(block_size_); }
  const TokenId* tokens_of(BlockId block) const {
    return tokens_.data() + index(block) * static_cast<std::size_t>(block_size_);
  }
  BlockId find_hashed(std::uint64_t hash, PrefixMark before, std::span<const TokenId> tokens) const;
  void unlink_free(BlockId block);
  void push_newest(BlockId block);
  void push_oldest(BlockId block);
  void unpublish(BlockId block);

  int block_size_;
  int available_ = 0;
  std::vector<BlockId> absent_;  // the last one is taken first
  std::vector<Block> blocks_;
  std::vector<TokenId> tokens_;   // [num_blocks, block_size], of published blocks
  std::vector<BlockId> buckets_;  // a power of two of them
  BlockId oldest_ = kNoBlock;     // taken next
  BlockId newest_ = kNoBlock;
  PrefixMark next_mark_ = std::uint64_t{1} << 63;  // below: roots chosen by the owner
};

}  // namespace xgen::engine
