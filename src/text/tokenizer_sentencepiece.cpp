// SentencePiece's tokenizer.model: a protobuf ModelProto
// (https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto).
#include <algorithm>
#include <bit>
#include <cmath>

#include "text/tokenizer_parts.h"

namespace xgen::text {
namespace {

Error bad(const std::string& what) { return make_error(ErrorCode::invalid_argument, what); }

// One message of protobuf's wire format, field by field. Lengths are checked against what is left.
class Message {
 public:
  explicit Message(std::string_view data) : data_(data) {}

  // Moves to the next field. False at the end or when the data is broken (see broken()).
  bool next() {
    if (pos_ >= data_.size() || broken_) return false;
    std::uint64_t key = 0;
    if (!varint(key)) return false;
    field_ = key >> 3;
    number_ = 0;
    bytes_ = {};
    switch (key & 7) {
      case 0:
        return varint(number_);
      case 1:
        return fixed(8);
      case 5:
        return fixed(4);
      case 2: {
        std::uint64_t length = 0;
        if (!varint(length)) return false;
        if (length > data_.size() - pos_) return fail();
        bytes_ = data_.substr(pos_, length);
        pos_ += length;
        return true;
      }
      default:
        return fail();
    }
  }
  bool broken() const { return broken_; }
  std::size_t position() const { return pos_; }
  std::uint64_t field() const { return field_; }
  std::string_view bytes() const { return bytes_; }
  std::uint64_t number() const { return number_; }
  bool flag() const { return number_ != 0; }
  std::int32_t int32() const { return static_cast<std::int32_t>(number_); }
  float real() const { return std::bit_cast<float>(static_cast<std::uint32_t>(number_)); }

 private:
  bool fail() {
    broken_ = true;
    return false;
  }
  bool varint(std::uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (pos_ >= data_.size()) return fail();
      const auto b = static_cast<unsigned char>(data_[pos_++]);
      value |= static_cast<std::uint64_t>(b & 0x7F) << shift;
      if (b < 0x80) return true;
    }
    return fail();
  }
  bool fixed(std::size_t n) {
    if (data_.size() - pos_ < n) return fail();
    for (std::size_t i = 0; i < n; ++i) {
      number_ |= static_cast<std::uint64_t>(static_cast<unsigned char>(data_[pos_ + i])) << (8 * i);
    }
    pos_ += n;
    return true;
  }

  std::string_view data_;
  std::size_t pos_ = 0;
  std::uint64_t field_ = 0, number_ = 0;
  std::string_view bytes_;
  bool broken_ = false;
};

}  // namespace

std::vector<DecoderStage> sentencepiece_decoder(bool strip_first_blank) {
  using Kind = DecoderStage::Kind;
  std::vector<DecoderStage> stages = {decoder_stage(Kind::replace, "\xE2\x96\x81", " "),
                                      decoder_stage(Kind::byte_fallback), decoder_stage(Kind::fuse)};
  if (strip_first_blank) {
    stages.push_back(decoder_stage(Kind::strip, " "));
    stages.back().start = 1;
  }
  return stages;
}

Status make_sentencepiece(SentencePieceParts spm, TokenizerParts& parts) {
  const auto size = static_cast<std::size_t>(parts.vocab.size());
  spm.types.resize(size, PieceType::normal);
  spm.scores.resize(size, 0.0f);
  Unknown unknown;
  unknown.fuse = true;
  unknown.byte_fallback = spm.byte_fallback;
  unknown.find_bytes(parts.vocab);
  if (parts.unk) unknown.id = *parts.unk;
  for (std::size_t i = 0; i < size; ++i) {
    if (!std::isfinite(spm.scores[i])) return bad("the score of piece " + std::to_string(i) + " is no finite number");
    const auto id = static_cast<std::int32_t>(i);
    const PieceType type = spm.types[i];
    const bool user_as_added = type == PieceType::user_defined && spm.user_defined_as_added;
    if (type != PieceType::control && type != PieceType::unknown && !user_as_added) continue;
    AddedToken token;
    token.content = parts.vocab.piece(id);
    token.id = id;
    token.normalized = false;
    token.special = type != PieceType::user_defined;
    if (Status s = parts.add_token(std::move(token)); !s) return s;
  }
  NormalizerStep step;
  step.kind = NormalizerStep::Kind::sentencepiece;
  step.charsmap = spm.charsmap;
  step.add_dummy_prefix = spm.add_dummy_prefix;
  step.remove_extra_whitespaces = spm.remove_extra_whitespaces;
  step.escape_whitespaces = spm.escape_whitespaces;
  std::vector<std::int32_t> user_defined;
  if (!spm.user_defined_as_added) {
    auto untouched = std::make_shared<ByteTrie>();
    for (std::size_t i = 0; i < size; ++i) {
      if (spm.types[i] != PieceType::user_defined) continue;
      user_defined.push_back(static_cast<std::int32_t>(i));
      untouched->insert(parts.vocab.piece(static_cast<std::int32_t>(i)), static_cast<std::int32_t>(i));
    }
    if (!user_defined.empty()) step.untouched = std::move(untouched);
  }
  parts.normalizer.steps.push_back(std::move(step));
  parts.decoder = sentencepiece_decoder(spm.add_dummy_prefix);

  if (spm.unigram) {
    UnigramModel::Options options;
    options.unknown = unknown;
    options.single_precision = true;
    options.types.resize(size);
    for (std::size_t i = 0; i < size; ++i) {
      const PieceType type = spm.types[i];
      options.types[i] = type == PieceType::normal ? 0 : type == PieceType::user_defined ? 2 : 1;
    }
    parts.model = std::make_unique<UnigramModel>(parts.vocab, std::vector<double>(spm.scores.begin(), spm.scores.end()),
                                                 std::move(options));
    return {};
  }
  // The higher the score the sooner the merge; equal scores share a rank, so that the leftmost goes first.
  std::vector<std::int32_t> order;
  for (std::size_t i = 0; i < size; ++i) {
    const PieceType type = spm.types[i];
    if (type == PieceType::normal || type == PieceType::user_defined || type == PieceType::unused) {
      order.push_back(static_cast<std::int32_t>(i));
    }
  }
  const auto score = [&](std::int32_t id) { return spm.scores[static_cast<std::size_t>(id)]; };
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return score(a) > score(b); });
  std::vector<std::uint32_t> ranks(size, BpeModel::kNever);
  std::uint32_t rank = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && score(order[i]) != score(order[i - 1])) ++rank;
    ranks[static_cast<std::size_t>(order[i])] = rank;
  }
  BpeModel::Options options;
  options.unknown = unknown;
  options.frozen = std::move(user_defined);
  auto model = std::make_unique<BpeModel>(parts.vocab, std::move(options));
  model->set_piece_ranks(std::move(ranks));
  parts.model = std::move(model);
  return {};
}

Status load_sentencepiece(std::string_view protobuf, TokenizerParts& parts) {
  SentencePieceParts spm;
  std::string_view trainer, normalizer;
  Message model(protobuf);
  std::int64_t count = 0;
  parts.vocab.reserve(protobuf.size() / 16, protobuf.size());
  while (model.next()) {
    if (model.field() == 2) trainer = model.bytes();
    if (model.field() == 3) normalizer = model.bytes();
    if (model.field() != 1) continue;
    std::string_view piece;
    float score = 0;
    auto type = PieceType::normal;
    Message item(model.bytes());
    while (item.next()) {
      if (item.field() == 1) piece = item.bytes();
      if (item.field() == 2) score = item.real();
      if (item.field() == 3) {
        if (item.number() < 1 || item.number() > 6) {
          return bad("piece " + std::to_string(count) + " has the unknown type " + std::to_string(item.number()));
        }
        type = static_cast<PieceType>(item.number());
      }
    }
    if (item.broken()) return bad("piece " + std::to_string(count) + " is broken");
    if (!parts.vocab.add(piece, count++)) return bad("holds too many pieces");
    spm.scores.push_back(score);
    spm.types.push_back(type);
  }
  if (model.broken())
    return bad("not a SentencePiece model, or cut short: broken at byte " + std::to_string(model.position()));
  if (count == 0) return bad("not a SentencePiece model: it holds no pieces");
  parts.vocab.index();

  std::int64_t model_type = 1;
  std::int64_t bos = 1, eos = 2, pad = -1, unk = 0;
  Message t(trainer);
  while (t.next()) {
    switch (t.field()) {
      case 3:
        model_type = t.int32();
        break;
      case 24:
        if (t.flag()) return make_error(ErrorCode::unsupported, "trainer_spec.treat_whitespace_as_suffix is not known");
        break;
      case 35:
        spm.byte_fallback = t.flag();
        break;
      case 40:
        unk = t.int32();
        break;
      case 41:
        bos = t.int32();
        break;
      case 42:
        eos = t.int32();
        break;
      case 43:
        pad = t.int32();
        break;
      default:
        break;
    }
  }
  if (t.broken()) return bad("trainer_spec is broken");
  if (model_type != 1 && model_type != 2) {
    return make_error(ErrorCode::unsupported, "trainer_spec.model_type " + std::to_string(model_type) +
                                                  ": only unigram (1) and BPE (2) are known");
  }
  spm.unigram = model_type == 1;
  Message n(normalizer);
  while (n.next()) {
    if (n.field() == 2 && !n.bytes().empty()) {
      auto map = Charsmap::parse(n.bytes());
      if (!map) return bad("normalizer_spec." + map.error().message);
      spm.charsmap = std::make_shared<const Charsmap>(std::move(*map));
    }
    if (n.field() == 3) spm.add_dummy_prefix = n.flag();
    if (n.field() == 4) spm.remove_extra_whitespaces = n.flag();
    if (n.field() == 5) spm.escape_whitespaces = n.flag();
  }
  if (n.broken()) return bad("normalizer_spec is broken");

  // Ids that do not exist (-1) are switched off in the trainer.
  const auto take = [&](std::int64_t id, PieceType type, std::optional<std::int32_t>& out) {
    if (id >= 0 && id < count && spm.types[static_cast<std::size_t>(id)] == type) out = static_cast<std::int32_t>(id);
  };
  take(unk, PieceType::unknown, parts.unk);
  take(bos, PieceType::control, parts.bos);
  take(eos, PieceType::control, parts.eos);
  take(pad, PieceType::control, parts.pad);
  // transformers: the Llama family (BPE) begins with bos; T5 and its like (unigram) do not.
  if (!spm.unigram && parts.bos) parts.add_bos = true;
  return make_sentencepiece(std::move(spm), parts);
}

}  // namespace xgen::text
