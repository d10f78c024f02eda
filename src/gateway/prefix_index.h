// Which replica has computed which beginnings of prompts, and so holds them in its prefix cache, as far as can be told
// from what was sent to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "inference/types.h"

namespace xgen::gateway {

// So many bytes of a prompt make one chunk: about the tokens of a few KV blocks.
inline constexpr std::size_t kChunkBytes = 256;
inline constexpr std::size_t kMaxChunks = 4096;  // of one prompt; what comes after does not tell replicas apart

// One hash per whole chunk of the prompt, each over everything before it as well, so that equal hashes mean equal
// beginnings. What decides over a prefix cache besides the text (tools, cache_salt) is part of the first.
std::vector<std::uint64_t> chunk_hashes(const inference::GenerateRequest& request);

// Not thread-safe. The least recently used chunks are forgotten beyond the capacity.
class PrefixIndex {
 public:
  explicit PrefixIndex(std::size_t capacity) : capacity_(capacity) {}

  // How many chunks from the beginning are here.
  std::size_t match(std::span<const std::uint64_t> chunks) const;
  // They are here from now on, as the latest.
  void add(std::span<const std::uint64_t> chunks);
  void set_capacity(std::size_t capacity);
  void clear();
  std::size_t size() const { return places_.size(); }

 private:
  void shrink();

  std::size_t capacity_;            // chunks
  std::list<std::uint64_t> order_;  // latest first
  std::unordered_map<std::uint64_t, std::list<std::uint64_t>::iterator> places_;
};

}  // namespace xgen::gateway
