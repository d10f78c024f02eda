#include "text/token_model.h"

#include <algorithm>
#include <limits>

#include "text/unicode.h"

namespace xgen::text {
namespace {

struct ByteAlphabet {
  std::array<std::array<char, 2>, 256> chars{};
  std::array<std::uint8_t, 256> lengths{};
  std::array<std::int16_t, 512> bytes{};

  ByteAlphabet() {
    bytes.fill(-1);
    char32_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = printable ? char32_t{b} : next++;
      std::string s;
      append_utf8(s, c);
      std::copy(s.begin(), s.end(), chars[b].begin());
      lengths[b] = static_cast<std::uint8_t>(s.size());
      bytes[c] = static_cast<std::int16_t>(b);
    }
  }
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet table;
  return table;
}

std::uint64_t merge_key(std::int32_t left, std::int32_t right) {
  return (static_cast<std::uint64_t>(left) << 32) | static_cast<std::uint32_t>(right);
}

std::uint64_t merge_hash(std::uint64_t key) {
  const std::uint64_t h = key * 0x9E3779B97F4A7C15ull;
  return h ^ (h >> 32);
}

Error no_unknown() {
  return make_error(ErrorCode::invalid_argument,
                    "the text holds something that the vocabulary has no token for, and there is no unknown token");
}

}  // namespace

std::string_view byte_level_char(unsigned char byte) {
  return {alphabet().chars[byte].data(), alphabet().lengths[byte]};
}

int byte_level_byte(char32_t c) { return c < 512 ? alphabet().bytes[c] : -1; }

void append_byte_level(std::string& out, std::string_view bytes) {
  const ByteAlphabet& table = alphabet();
  for (const char c : bytes) {
    const auto b = static_cast<unsigned char>(c);
    out.append(table.chars[b].data(), table.lengths[b]);
  }
}

void Unknown::find_bytes(const Vocab& vocab) {
  constexpr char hex[] = "0123456789ABCDEF";
  for (unsigned b = 0; b < 256; ++b) {
    const char name[] = {'<', '0', 'x', hex[b >> 4], hex[b & 15], '>'};
    bytes[b] = vocab.find({name, sizeof name});
  }
}

// ---- BPE ----

BpeModel::BpeModel(const Vocab& vocab, Options options) : vocab_(vocab), options_(std::move(options)) {
  for (unsigned b = 0; b < 256; ++b) {
    const char c = static_cast<char>(b);
    if (options_.byte_level) {
      byte_ids_[b] = vocab_.find(byte_level_char(static_cast<unsigned char>(b)));
    } else if (options_.raw_bytes || b < 0x80) {
      byte_ids_[b] = vocab_.find({&c, 1});
    } else {
      byte_ids_[b] = kNoToken;
    }
  }
  for (const std::int32_t id : options_.frozen) frozen_.insert(vocab_.piece(id), id);
  constexpr std::string_view blank = "\xE2\x96\x81";
  cut_at_metaspace_ = !options_.byte_level && !options_.raw_bytes && options_.subword_prefix.empty() &&
                      options_.word_suffix.empty() && !options_.ignore_merges && vocab_.find(blank) >= 0;
  for (std::int32_t id = 0; cut_at_metaspace_ && id < vocab_.size(); ++id) {
    std::string_view piece = vocab_.piece(id);
    while (piece.starts_with(blank)) piece.remove_prefix(blank.size());
    if (piece.find(blank) != std::string_view::npos) cut_at_metaspace_ = false;
  }
  whole_ = std::make_unique<std::atomic<std::uint8_t>[]>(static_cast<std::size_t>(vocab_.size()));
}

void BpeModel::set_merges(std::span<const NamedMerge> merges) {
  merges_.assign(std::bit_ceil(merges.size() * 2 + 16), {});
  const std::size_t mask = merges_.size() - 1;
  const auto key = [&](std::size_t i) { return merge_key(merges[i].left, merges[i].right); };
  constexpr std::size_t kAhead = 16;
  for (std::size_t i = 0; i < merges.size(); ++i) {
    if (i + kAhead < merges.size()) __builtin_prefetch(&merges_[merge_hash(key(i + kAhead)) & mask], 1);
    std::size_t slot = merge_hash(key(i)) & mask;
    while (merges_[slot].rank != kNever && merges_[slot].key != key(i)) slot = (slot + 1) & mask;
    merges_[slot] = {key(i), static_cast<std::uint32_t>(i), merges[i].merged};
  }
}

void BpeModel::set_piece_ranks(std::vector<std::uint32_t> ranks) { piece_ranks_ = std::move(ranks); }

BpeModel::Found BpeModel::find_merge(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = merge_key(left, right);
  const std::size_t mask = merges_.size() - 1;
  for (std::size_t i = merge_hash(key) & mask;; i = (i + 1) & mask) {
    if (merges_[i].key == key) return {merges_[i].rank, merges_[i].id};
    if (merges_[i].rank == kNever) return {kNever, kNoToken};
  }
}

BpeModel::Found BpeModel::candidate(std::string_view word, const Scratch::Symbol& left,
                                    const Scratch::Symbol& right) const {
  if (piece_ranks_.empty()) {
    if (left.id < 0 || right.id < 0 || merges_.empty()) return {kNever, kNoToken};
    return find_merge(left.id, right.id);
  }
  if (left.id < -1 || right.id < -1) return {kNever, kNoToken};  // frozen
  const std::int32_t id = vocab_.find(word.substr(left.begin, left.length + right.length));
  if (id < 0 || static_cast<std::size_t>(id) >= piece_ranks_.size()) return {kNever, kNoToken};
  return {piece_ranks_[static_cast<std::size_t>(id)], id};
}

// The word's first symbols. Ids below -1 mark frozen pieces: -2 - id.
void BpeModel::split(std::string_view word, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  const auto push = [&](std::int32_t id, std::size_t begin, std::size_t length) {
    const auto i = static_cast<std::int32_t>(symbols.size());
    symbols.push_back(
        {id, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(length), i - 1, i + 1, kNever});
  };
  if (options_.byte_level || options_.raw_bytes) {
    for (std::size_t i = 0; i < word.size(); ++i) {
      const std::int32_t id = byte_ids_[static_cast<unsigned char>(word[i])];
      if (id >= 0) {
        push(id, i, 1);
      } else if (options_.unknown.id >= 0) {
        push(options_.unknown.id, i, 1);
      }
    }
  } else if (!piece_ranks_.empty()) {
    for (std::size_t i = 0; i < word.size();) {
      if (frozen_.may_begin(word[i])) {
        const ByteTrie::Match match = frozen_.longest(word, i);
        if (match.value >= 0) {
          push(-2 - match.value, i, match.end - i);
          i = match.end;
          continue;
        }
      }
      const std::size_t n = std::min(utf8_length(word[i]), word.size() - i);
      push(n == 1 ? byte_ids_[static_cast<unsigned char>(word[i])] : vocab_.find(word.substr(i, n)), i, n);
      i += n;
    }
  } else {
    const Unknown& unknown = options_.unknown;
    std::size_t pending = 0;  // bytes of unknown text not pushed yet
    std::size_t begin = 0;
    const auto flush = [&] {
      if (pending > 0) push(unknown.id, begin, pending);
      pending = 0;
    };
    for (std::size_t i = 0; i < word.size();) {
      const std::size_t n = std::min(utf8_length(word[i]), word.size() - i);
      std::string_view text = word.substr(i, n);
      const bool first = i == 0, last = i + n == word.size();
      std::int32_t id;
      if ((!first && !options_.subword_prefix.empty()) || (last && !options_.word_suffix.empty())) {
        scratch.mapped.clear();
        if (!first) scratch.mapped += options_.subword_prefix;
        scratch.mapped += text;
        if (last) scratch.mapped += options_.word_suffix;
        text = scratch.mapped;
        id = vocab_.find(text);
      } else {
        id = n == 1 ? byte_ids_[static_cast<unsigned char>(word[i])] : vocab_.find(text);
      }
      if (id >= 0) {
        flush();
        push(id, i, n);
      } else if (unknown.byte_fallback && std::all_of(text.begin(), text.end(), [&](char c) {
                   return unknown.bytes[static_cast<unsigned char>(c)] >= 0;
                 })) {
        // Unknown text before it stays pending, as in `tokenizers`.
        for (const char c : text) push(unknown.bytes[static_cast<unsigned char>(c)], i, 1);
      } else if (unknown.id >= 0) {
        if (!unknown.fuse) flush();
        if (pending == 0) begin = i;
        pending += n;
      }
      i += n;
    }
    flush();
  }
  if (!symbols.empty()) symbols.back().next = -1;
}

// Few symbols: look for the best pair again and again, in an array that closes up.
void BpeModel::merge_short(std::string_view word, Scratch& scratch) const {
  auto& s = scratch.symbols;
  std::size_t n = s.size();
  for (std::size_t i = 0; i + 1 < n; ++i) {
    const Found found = candidate(word, s[i], s[i + 1]);
    s[i].rank = found.rank;
    s[i].next = found.id;
  }
  while (n > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < n; ++i) {
      if (s[i].rank < s[best].rank) best = i;
    }
    if (s[best].rank == kNever) break;
    s[best].id = s[best].next;
    s[best].length += s[best + 1].length;
    std::move(s.begin() + static_cast<std::ptrdiff_t>(best) + 2, s.begin() + static_cast<std::ptrdiff_t>(n),
              s.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    --n;
    const auto renew = [&](std::size_t i) {
      const Found found = candidate(word, s[i], s[i + 1]);
      s[i].rank = found.rank;
      s[i].next = found.id;
    };
    s[best].rank = kNever;
    if (best + 1 < n) renew(best);
    if (best > 0) renew(best - 1);
  }
  s.resize(n);
}

// Many symbols: a heap of candidates over a linked list, O(n log n).
void BpeModel::merge_long(std::string_view word, Scratch& scratch) const {
  auto& s = scratch.symbols;
  auto& heap = scratch.heap;
  heap.clear();
  const auto later = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  };
  const auto propose = [&](std::int32_t left) {
    const auto& a = s[static_cast<std::size_t>(left)];
    if (a.next < 0) return false;
    const auto& b = s[static_cast<std::size_t>(a.next)];
    const Found found = candidate(word, a, b);
    if (found.rank == kNever) return false;
    heap.push_back({found.rank, left, found.id, a.length + b.length});
    return true;
  };
  for (std::size_t i = 0; i + 1 < s.size(); ++i) propose(static_cast<std::int32_t>(i));
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Scratch::Candidate top = heap.back();
    heap.pop_back();
    auto& a = s[static_cast<std::size_t>(top.left)];
    if (a.length == 0 || a.next < 0) continue;
    auto& b = s[static_cast<std::size_t>(a.next)];
    // One of the two has grown since: its new pair is queued already.
    if (a.length + b.length != top.length) continue;
    a.id = top.id;
    a.length += b.length;
    b.length = 0;
    a.next = b.next;
    if (a.next >= 0) s[static_cast<std::size_t>(a.next)].prev = top.left;
    if (propose(top.left)) std::push_heap(heap.begin(), heap.end(), later);
    if (a.prev >= 0 && propose(a.prev)) std::push_heap(heap.begin(), heap.end(), later);
  }
  s.erase(std::remove_if(s.begin(), s.end(), [](const auto& x) { return x.length == 0; }), s.end());
}

void BpeModel::emit(std::string_view word, const Scratch& scratch, std::vector<std::int32_t>& ids) const {
  const Unknown& unknown = options_.unknown;
  bool after_unknown = false;
  for (const auto& symbol : scratch.symbols) {
    if (symbol.id >= 0) {
      ids.push_back(symbol.id);
      after_unknown = false;
      continue;
    }
    if (symbol.id < -1) {
      ids.push_back(-2 - symbol.id);
      after_unknown = false;
      continue;
    }
    const std::string_view text = word.substr(symbol.begin, symbol.length);
    if (unknown.byte_fallback && std::all_of(text.begin(), text.end(), [&](char c) {
          return unknown.bytes[static_cast<unsigned char>(c)] >= 0;
        })) {
      for (const char c : text) ids.push_back(unknown.bytes[static_cast<unsigned char>(c)]);
      after_unknown = false;
    } else if (unknown.id >= 0) {
      if (!after_unknown || !unknown.fuse) ids.push_back(unknown.id);
      after_unknown = true;
    }
  }
}

Status BpeModel::encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (!cut_at_metaspace_) return encode_word(word, scratch, ids);
  constexpr std::string_view blank = "\xE2\x96\x81";
  while (!word.empty()) {
    std::size_t end = 0;
    while (word.substr(end).starts_with(blank)) end += blank.size();
    end = std::min(word.find(blank, end), word.size());
    if (Status s = encode_word(word.substr(0, end), scratch, ids); !s) return s;
    word.remove_prefix(end);
  }
  return {};
}

Status BpeModel::encode_word(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  // Longer pieces exist, but not as words that are worth a guess.
  constexpr std::size_t kGuess = 64;
  constexpr std::size_t kShort = 48;
  std::int32_t whole = kNoToken;
  const bool plain = options_.subword_prefix.empty() && options_.word_suffix.empty() && frozen_.empty();
  if (options_.ignore_merges || (plain && word.size() <= kGuess)) {
    if (options_.byte_level) {
      scratch.mapped.clear();
      append_byte_level(scratch.mapped, word);
      whole = vocab_.find(scratch.mapped);
    } else {
      whole = vocab_.find(word);
    }
    if (whole >= 0) {
      const bool known =
          whole < vocab_.size() && whole_[static_cast<std::size_t>(whole)].load(std::memory_order_relaxed) == 1;
      if (options_.ignore_merges || known) {
        ids.push_back(whole);
        return {};
      }
    }
  }
  split(word, scratch);
  if (scratch.symbols.size() <= kShort) {
    merge_short(word, scratch);
  } else {
    merge_long(word, scratch);
  }
  const std::size_t before = ids.size();
  emit(word, scratch, ids);
  if (whole >= 0) {
    const bool same = ids.size() == before + 1 && ids.back() == whole;
    whole_[static_cast<std::size_t>(whole)].store(same ? 1 : 2, std::memory_order_relaxed);
  }
  return {};
}

// ---- Unigram ----

UnigramModel::UnigramModel(const Vocab& vocab, std::vector<double> scores, Options options)
    : vocab_(vocab), options_(std::move(options)), scores_(std::move(scores)) {
  const auto count = std::min(scores_.size(), static_cast<std::size_t>(vocab_.size()));
  double lowest = std::numeric_limits<double>::max(), highest = std::numeric_limits<double>::lowest();
  const auto type = [&](std::size_t i) { return options_.types.empty() ? 0 : int{options_.types[i]}; };
  for (std::size_t i = 0; i < count; ++i) {
    if (type(i) != 0) continue;
    lowest = std::min(lowest, scores_[i]);
    highest = std::max(highest, scores_[i]);
  }
  if (lowest > highest) lowest = highest = 0;
  constexpr double kUnknownPenalty = 10.0;
  unknown_score_ = lowest - kUnknownPenalty;

  trie_.reserve(count * 2);
  for (std::size_t id = 0; id < count; ++id) {
    if (type(id) == 1) continue;
    const std::string_view piece = vocab_.piece(static_cast<std::int32_t>(id));
    // SentencePiece's bonus, by which a user-defined piece always wins.
    if (type(id) == 2) scores_[id] = static_cast<double>(piece.size()) * highest - 0.1;
    trie_.insert(piece, static_cast<std::int32_t>(id));
  }
}

template <class Real>
Status UnigramModel::run(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  auto& best = scratch.lattice;
  best.assign(word.size() + 1, {0, kNoToken, -1});
  for (std::size_t start = 0; start < word.size();) {
    const auto here = static_cast<Real>(best[start].score);
    const std::size_t char_end = start + std::min(utf8_length(word[start]), word.size() - start);
    const auto offer = [&](std::size_t end, Real score, std::int32_t id) {
      const Real total = score + here;
      if (best[end].from < 0 || total > static_cast<Real>(best[end].score)) {
        best[end] = {static_cast<double>(total), id, static_cast<std::int32_t>(start)};
      }
    };
    bool single = false;
    trie_.for_each_prefix(word, start, [&](std::size_t end, std::int32_t id) {
      offer(end, static_cast<Real>(scores_[static_cast<std::size_t>(id)]), id);
      if (end == char_end) single = true;
    });
    if (!single) {
      if (options_.unknown.id < 0) return no_unknown();
      offer(char_end, static_cast<Real>(unknown_score_), options_.unknown.id);
    }
    start = char_end;
  }
  // Backwards: the path, with neighbouring unknowns as one.
  auto& path = scratch.symbols;
  path.clear();
  for (std::size_t end = word.size(); end > 0;) {
    const Scratch::Step& step = best[end];
    const auto from = static_cast<std::size_t>(step.from);
    const bool unknown = step.id == options_.unknown.id;
    if (unknown && options_.unknown.fuse && !path.empty() && path.back().id == step.id) {
      path.back().begin = static_cast<std::uint32_t>(from);
      path.back().length += static_cast<std::uint32_t>(end - from);
    } else {
      path.push_back({step.id, static_cast<std::uint32_t>(from), static_cast<std::uint32_t>(end - from), 0, 0, 0});
    }
    end = from;
  }
  for (std::size_t i = path.size(); i-- > 0;) {
    if (path[i].id != options_.unknown.id) {
      ids.push_back(path[i].id);
      continue;
    }
    const std::string_view text = word.substr(path[i].begin, path[i].length);
    const auto& bytes = options_.unknown.bytes;
    const std::int32_t exact = vocab_.find(text);
    if (exact >= 0 && static_cast<std::size_t>(exact) < scores_.size() &&
        (options_.types.empty() || options_.types[static_cast<std::size_t>(exact)] != 1)) {
      ids.push_back(exact);
    } else if (options_.unknown.byte_fallback && std::all_of(text.begin(), text.end(), [&](char c) {
                 return bytes[static_cast<unsigned char>(c)] >= 0;
               })) {
      for (const char c : text) ids.push_back(bytes[static_cast<unsigned char>(c)]);
    } else {
      ids.push_back(options_.unknown.id);
    }
  }
  return {};
}

Status UnigramModel::encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  return options_.single_precision ? run<float>(word, scratch, ids) : run<double>(word, scratch, ids);
}

// ---- WordPiece, WordLevel ----

WordPieceModel::WordPieceModel(const Vocab& vocab, Options options) : vocab_(vocab), options_(std::move(options)) {
  for (std::int32_t id = 0; id < vocab_.size(); ++id) longest_ = std::max(longest_, vocab_.piece(id).size());
}

Status WordPieceModel::encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  const std::size_t before = ids.size();
  std::size_t chars = 0;
  for (std::size_t i = 0; i < word.size() && chars <= options_.max_chars; next_code_point(word, i)) ++chars;
  bool bad = chars > options_.max_chars;
  for (std::size_t start = 0; !bad && start < word.size();) {
    const std::string& prefix = start == 0 ? options_.first_prefix : options_.subword_prefix;
    std::size_t end = std::min(word.size(), start + longest_);
    while (end < word.size() && (static_cast<unsigned char>(word[end]) & 0xC0) == 0x80) --end;
    std::int32_t id = kNoToken;
    for (; end > start; --end) {
      if (end < word.size() && (static_cast<unsigned char>(word[end]) & 0xC0) == 0x80) continue;
      scratch.mapped.assign(prefix).append(word.substr(start, end - start));
      id = vocab_.find(scratch.mapped);
      if (id >= 0) break;
    }
    if (id < 0) {
      bad = true;
    } else {
      ids.push_back(id);
      start = end;
    }
  }
  if (bad) {
    if (options_.unknown < 0) return no_unknown();
    ids.resize(before);
    ids.push_back(options_.unknown);
  }
  return {};
}

Status WordLevelModel::encode(std::string_view word, Scratch&, std::vector<std::int32_t>& ids) const {
  const std::int32_t id = vocab_.find(word);
  if (id < 0 && unknown_ < 0) return no_unknown();
  ids.push_back(id >= 0 ? id : unknown_);
  return {};
}

}  // namespace xgen::text
