#include "gateway/prefix_index.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

namespace xgen::gateway {
namespace {

// A 64-bit hash of any number of words: after each, the finalizer of MurmurHash3 mixes every bit into every other.
class Hash {
 public:
  void add(std::uint64_t word) {
    state_ = (state_ ^ word) * 0xFF51AFD7ED558CCDu;
    state_ = (state_ ^ (state_ >> 33)) * 0xC4CEB9FE1A85EC53u;
    state_ ^= state_ >> 29;
  }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0x9E3779B97F4A7C15u;
};

// Cuts what it is given into chunks, and notes the hash at the end of each.
class Chunker {
 public:
  void add(std::string_view bytes) {
    while (!bytes.empty() && !full()) {
      const std::size_t part = std::min(bytes.size(), kChunkBytes - filled_);
      std::memcpy(chunk_ + filled_, bytes.data(), part);
      filled_ += part;
      bytes.remove_prefix(part);
      if (filled_ == kChunkBytes) close();
    }
  }
  // A border that text cannot make.
  void border(char kind) {
    const char mark[2] = {'\0', kind};
    add({mark, 2});
  }
  // Beside the text: no chunk of its own.
  void salt(std::string_view bytes) {
    for (const char c : bytes) hash_.add(static_cast<unsigned char>(c) + 1u);
    hash_.add(0);
  }
  bool full() const { return hashes_.size() >= kMaxChunks; }
  std::vector<std::uint64_t> take() { return std::move(hashes_); }

 private:
  void close() {
    for (std::size_t i = 0; i < kChunkBytes; i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, chunk_ + i, 8);
      hash_.add(word);
    }
    hashes_.push_back(hash_.value());
    filled_ = 0;
  }

  Hash hash_;
  char chunk_[kChunkBytes];
  std::size_t filled_ = 0;
  std::vector<std::uint64_t> hashes_;
};

}  // namespace

std::vector<std::uint64_t> chunk_hashes(const inference::GenerateRequest& request) {
  Chunker chunker;
  for (const inference::Extension& each : request.extensions) {
    if (each.name == "cache_salt") chunker.salt(each.value);
  }
  // Templates write them before the first message.
  for (const inference::Tool& tool : request.tools) {
    chunker.border('t');
    for (const std::string* part : {&tool.name, &tool.description, &tool.parameters}) {
      chunker.add(*part);
      chunker.border('p');
    }
  }
  if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    chunker.add(*text);
  } else if (const auto* ids = std::get_if<std::vector<inference::TokenId>>(&request.prompt)) {
    chunker.add({reinterpret_cast<const char*>(ids->data()), ids->size() * sizeof(inference::TokenId)});
  } else {
    for (const inference::Message& message : std::get<std::vector<inference::Message>>(request.prompt)) {
      if (chunker.full()) break;
      chunker.border('m');
      chunker.add(message.role);
      chunker.border('c');
      chunker.add(message.content);
      for (const inference::ContentPart& part : message.parts) {
        chunker.border(part.kind == inference::ContentPart::Kind::image ? 'i' : 'x');
        chunker.add(part.value);
      }
      for (const inference::ToolCall& call : message.tool_calls) {
        chunker.border('f');
        chunker.add(call.name);
        chunker.add(call.arguments);
      }
    }
  }
  return chunker.take();
}

std::size_t PrefixIndex::match(std::span<const std::uint64_t> chunks) const {
  // A beginning is always used later than what goes on from it (see add), and so forgotten later.
  std::size_t low = 0;
  std::size_t high = chunks.size();
  while (low < high) {
    const std::size_t middle = (low + high + 1) / 2;
    if (places_.contains(chunks[middle - 1]))
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

void PrefixIndex::add(std::span<const std::uint64_t> chunks) {
  // The end first, so that a beginning is always later in use than what goes on from it.
  for (std::size_t i = chunks.size(); i-- > 0;) {
    const auto [place, is_new] = places_.try_emplace(chunks[i], order_.end());
    if (is_new) {
      order_.push_front(chunks[i]);
      place->second = order_.begin();
    } else {
      order_.splice(order_.begin(), order_, place->second);
    }
  }
  shrink();
}

void PrefixIndex::set_capacity(std::size_t capacity) {
  capacity_ = capacity;
  shrink();
}

void PrefixIndex::shrink() {
  while (places_.size() > capacity_) {
    places_.erase(order_.back());
    order_.pop_back();
  }
}

void PrefixIndex::clear() {
  places_.clear();
  order_.clear();
}

}  // namespace xgen::gateway
