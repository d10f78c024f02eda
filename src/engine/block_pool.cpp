#include "engine/block_pool.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace xgen::engine {

BlockPool::BlockPool(int num_blocks, int block_size, int present)
    : block_size_(block_size),
      blocks_(static_cast<std::size_t>(num_blocks)),
      tokens_(static_cast<std::size_t>(num_blocks) * static_cast<std::size_t>(block_size)),
      buckets_(std::bit_ceil(static_cast<std::size_t>(std::max(num_blocks, 1)) * 2), kNoBlock) {
  for (BlockId block = 0; block < present; ++block) push_newest(block);
  available_ = present;
  for (BlockId block = num_blocks - 1; block >= present; --block) absent_.push_back(block);
}

void BlockPool::grow(int blocks) {
  const auto first = absent_.end() - blocks;
  for (auto block = first; block != absent_.end(); ++block) push_oldest(*block);  // before any cached one
  absent_.erase(first, absent_.end());
  available_ += blocks;
}

void BlockPool::shrink(int blocks, std::vector<BlockId>& gone) {
  for (int i = 0; i < blocks && oldest_ != kNoBlock; ++i) {
    const BlockId block = oldest_;
    unlink_free(block);
    if (published(block)) unpublish(block);
    --available_;
    absent_.push_back(block);
    gone.push_back(block);
  }
}

BlockId BlockPool::allocate() {
  if (oldest_ == kNoBlock) return kNoBlock;
  const BlockId block = oldest_;
  unlink_free(block);
  if (published(block)) unpublish(block);
  blocks_[index(block)].refs = 1;
  --available_;
  return block;
}

void BlockPool::share(BlockId block) {
  Block& b = blocks_[index(block)];
  if (b.refs == 0) {
    assert(b.mark != 0);
    unlink_free(block);
    --available_;
  }
  ++b.refs;
}

void BlockPool::release(BlockId block) {
  Block& b = blocks_[index(block)];
  assert(b.refs > 0);
  if (--b.refs > 0) return;
  ++available_;
  if (b.mark != 0) {
    push_newest(block);
  } else {
    push_oldest(block);
  }
}

std::uint64_t BlockPool::hash(PrefixMark before, std::span<const TokenId> tokens) {
  std::uint64_t h = before * 0x9E3779B97F4A7C15u;
  for (TokenId token : tokens) {
    h = (h ^ static_cast<std::uint32_t>(token)) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  }
  return h;
}

BlockId BlockPool::find_hashed(std::uint64_t h, PrefixMark before, std::span<const TokenId> tokens) const {
  BlockId block = buckets_[h & (buckets_.size() - 1)];
  for (; block != kNoBlock; block = blocks_[index(block)].next_in_bucket) {
    const Block& b = blocks_[index(block)];
    if (b.hash == h && b.before == before && std::equal(tokens.begin(), tokens.end(), tokens_of(block))) break;
  }
  return block;
}

BlockId BlockPool::find(PrefixMark before, std::span<const TokenId> tokens) const {
  assert(static_cast<int>(tokens.size()) == block_size_);
  return find_hashed(hash(before, tokens), before, tokens);
}

BlockId BlockPool::publish(BlockId block, PrefixMark before, std::span<const TokenId> tokens) {
  Block& b = blocks_[index(block)];
  assert(static_cast<int>(tokens.size()) == block_size_ && b.refs > 0 && b.mark == 0);
  const std::uint64_t h = hash(before, tokens);
  if (const BlockId same = find_hashed(h, before, tokens); same != kNoBlock) return same;
  std::copy(tokens.begin(), tokens.end(), tokens_of(block));
  b.hash = h;
  b.before = before;
  b.mark = next_mark_++;
  BlockId& head = buckets_[h & (buckets_.size() - 1)];
  b.next_in_bucket = head;
  head = block;
  return block;
}

void BlockPool::unpublish(BlockId block) {
  Block& b = blocks_[index(block)];
  BlockId* link = &buckets_[b.hash & (buckets_.size() - 1)];
  while (*link != block) link = &blocks_[index(*link)].next_in_bucket;
  *link = b.next_in_bucket;
  b.next_in_bucket = kNoBlock;
  b.mark = 0;
}

void BlockPool::unlink_free(BlockId block) {
  Block& b = blocks_[index(block)];
  (b.older == kNoBlock ? oldest_ : blocks_[index(b.older)].newer) = b.newer;
  (b.newer == kNoBlock ? newest_ : blocks_[index(b.newer)].older) = b.older;
  b.older = b.newer = kNoBlock;
}

void BlockPool::push_newest(BlockId block) {
  Block& b = blocks_[index(block)];
  b.older = newest_;
  b.newer = kNoBlock;
  (newest_ == kNoBlock ? oldest_ : blocks_[index(newest_)].newer) = block;
  newest_ = block;
}

void BlockPool::push_oldest(BlockId block) {
  Block& b = blocks_[index(block)];
  b.newer = oldest_;
  b.older = kNoBlock;
  (oldest_ == kNoBlock ? newest_ : blocks_[index(oldest_)].older) = block;
  oldest_ = block;
}

std::string BlockPool::check_integrity() const {
  const auto name = [](BlockId block) { return "block " + std::to_string(block); };
  int listed = 0;
  BlockId previous = kNoBlock;
  for (BlockId block = oldest_; block != kNoBlock; block = blocks_[index(block)].newer) {
    const Block& b = blocks_[index(block)];
    if (++listed > num_blocks()) return "the free list has a cycle";
    if (b.refs != 0) return name(block) + " is in the free list and used";
    if (b.older != previous) return name(block) + " has a wrong backward link";
    previous = block;
  }
  if (previous != newest_) return "the free list does not end at its newest block";
  if (listed != available_)
    return "the free list has " + std::to_string(listed) + " blocks, the count says " + std::to_string(available_);

  int used = 0;
  int findable = 0;
  for (BlockId block = 0; block < num_blocks(); ++block) {
    const Block& b = blocks_[index(block)];
    if (b.refs < 0) return name(block) + " has a negative reference count";
    used += b.refs > 0;
    if (b.mark == 0) continue;
    ++findable;
    const std::span<const TokenId> tokens(tokens_of(block), static_cast<std::size_t>(block_size_));
    if (b.hash != hash(b.before, tokens)) return name(block) + " has a wrong hash";
    if (find(b.before, tokens) != block) return name(block) + " is published but not the one that is found";
  }
  for (BlockId block : absent_) {
    const Block& b = blocks_[index(block)];
    if (b.refs != 0 || b.mark != 0) return name(block) + " is absent and in use";
  }
  if (used + listed + absent() != num_blocks()) return "used, free and absent blocks do not add up";
  std::size_t chained = 0;
  for (BlockId head : buckets_) {
    for (BlockId block = head; block != kNoBlock; block = blocks_[index(block)].next_in_bucket) {
      if (++chained > blocks_.size()) return "a hash chain has a cycle";
      if (blocks_[index(block)].mark == 0) return name(block) + " is in a hash chain but not published";
    }
  }
  if (chained != static_cast<std::size_t>(findable)) return "hash chains and published blocks do not add up";
  return {};
}

}  // namespace xgen::engine
