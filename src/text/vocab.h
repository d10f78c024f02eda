// Vocab: the pieces of a vocabulary in one arena, with an open-addressing table from piece to id.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace xgen::text {

inline std::uint64_t hash_bytes(std::string_view s) {
  constexpr std::uint64_t k = 0x9E3779B97F4A7C15ull;
  std::uint64_t h = s.size() * k;
  const char* p = s.data();
  std::size_t n = s.size();
  for (; n >= 8; p += 8, n -= 8) {
    std::uint64_t w;
    std::memcpy(&w, p, 8);
    h = (h ^ w) * k;
    h ^= h >> 29;
  }
  if (n > 0) {
    std::uint64_t w = 0;
    std::memcpy(&w, p, n);
    h = (h ^ w) * k;
  }
  return h ^ (h >> 32);
}

// Built in two steps: add() every piece, then index(). Afterwards read-only; add_indexed() widens it later (added
// tokens). Ids are 0 .. kMaxId; ids without a piece have an empty one.
class Vocab {
 public:
  static constexpr std::int32_t kMaxId = (1 << 22) - 1;

  void reserve(std::size_t pieces, std::size_t bytes) {
    entries_.reserve(pieces);
    arena_.reserve(bytes);
  }

  // False: the id is negative or above kMaxId. A second piece for an id replaces the first.
  bool add(std::string_view piece, std::int64_t id) {
    if (id < 0 || id > kMaxId) return false;
    const auto i = static_cast<std::size_t>(id);
    if (i >= entries_.size()) entries_.resize(i + 1);
    entries_[i] = {arena_.size(), static_cast<std::uint32_t>(piece.size()), true};
    arena_ += piece;
    return true;
  }

  // Of several ids with one piece the largest is found.
  void index() {
    slots_.assign(std::bit_ceil(entries_.size() * 2 + 16), {});
    used_ = 0;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].used) insert(static_cast<std::int32_t>(i));
    }
  }

  bool add_indexed(std::string_view piece, std::int64_t id) {
    if (!add(piece, id)) return false;
    if ((used_ + 1) * 2 > slots_.size()) {
      index();
    } else {
      insert(static_cast<std::int32_t>(id));
    }
    return true;
  }

  // -1: no such piece.
  std::int32_t find(std::string_view piece) const {
    if (slots_.empty()) return -1;
    const std::uint64_t h = hash_bytes(piece);
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = h & mask;; i = (i + 1) & mask) {
      const Slot& slot = slots_[i];
      if (slot.id < 0) return -1;
      if (slot.tag == static_cast<std::uint32_t>(h >> 32) && this->piece(slot.id) == piece) return slot.id;
    }
  }

  // find() for many pieces at once: the memory that they need is fetched together, which is several times faster in a
  // table larger than the caches.
  void find_many(std::span<const std::string_view> pieces, std::span<std::int32_t> ids) const {
    constexpr std::size_t kBlock = 32;
    std::uint64_t hashes[kBlock];
    if (slots_.empty()) {
      std::fill(ids.begin(), ids.end(), -1);
      return;
    }
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t from = 0; from < pieces.size(); from += kBlock) {
      const std::size_t n = std::min(kBlock, pieces.size() - from);
      for (std::size_t k = 0; k < n; ++k) {
        hashes[k] = hash_bytes(pieces[from + k]);
        __builtin_prefetch(&slots_[hashes[k] & mask]);
      }
      for (std::size_t k = 0; k < n; ++k) {
        std::size_t i = hashes[k] & mask;
        while (slots_[i].id >= 0 && slots_[i].tag != static_cast<std::uint32_t>(hashes[k] >> 32)) i = (i + 1) & mask;
        ids[from + k] = slots_[i].id;
        if (slots_[i].id >= 0) __builtin_prefetch(&entries_[static_cast<std::size_t>(slots_[i].id)]);
      }
      for (std::size_t k = 0; k < n; ++k) {
        const std::int32_t id = ids[from + k];
        if (id >= 0) __builtin_prefetch(arena_.data() + entries_[static_cast<std::size_t>(id)].begin);
      }
      for (std::size_t k = 0; k < n; ++k) {
        std::int32_t& id = ids[from + k];
        if (id >= 0 && piece(id) != pieces[from + k]) id = find(pieces[from + k]);
      }
    }
  }

  bool has(std::int64_t id) const { return id >= 0 && id < size() && entries_[static_cast<std::size_t>(id)].used; }
  // Precondition: 0 <= id < size().
  std::string_view piece(std::int32_t id) const {
    const Entry& e = entries_[static_cast<std::size_t>(id)];
    return std::string_view(arena_).substr(e.begin, e.length);
  }
  // One more than the largest id.
  std::int32_t size() const { return static_cast<std::int32_t>(entries_.size()); }

 private:
  struct Entry {
    std::size_t begin = 0;
    std::uint32_t length = 0;
    bool used = false;
  };
  struct Slot {
    std::uint32_t tag = 0;
    std::int32_t id = -1;
  };

  void insert(std::int32_t id) {
    const std::string_view text = piece(id);
    const std::uint64_t h = hash_bytes(text);
    const std::size_t mask = slots_.size() - 1;
    const auto tag = static_cast<std::uint32_t>(h >> 32);
    for (std::size_t i = h & mask;; i = (i + 1) & mask) {
      Slot& slot = slots_[i];
      if (slot.id < 0) {
        slot = {tag, id};
        ++used_;
        return;
      }
      if (slot.tag == tag && piece(slot.id) == text) {
        slot.id = id;
        return;
      }
    }
  }

  std::string arena_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;
  std::size_t used_ = 0;
};

}  // namespace xgen::text
