// How the readers in this room build a TensorStore. Not for other rooms.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weights/tensor_store.h"

namespace xgen::weights {

struct TensorStore::State {
  std::vector<NamedTensor> tensors;  // sorted by name
  std::vector<Bytes> files;
  std::vector<Metadata> headers;  // tensor names may point into them
  Metadata metadata;
  std::string source;
  std::size_t bytes = 0;
};

class TensorStoreBuilder {
 public:
  explicit TensorStoreBuilder(std::string source) : state_(std::make_shared<TensorStore::State>()) {
    state_->source = std::move(source);
  }
  // `name` and the view's data must be inside `file` or `header` of a keep() call.
  void add(std::string_view name, const TensorView& view) { state_->tensors.push_back({name, view}); }
  void keep(Bytes file) { state_->files.push_back(std::move(file)); }
  void keep(Metadata header) { state_->headers.push_back(std::move(header)); }
  void set_metadata(Metadata metadata) { state_->metadata = std::move(metadata); }
  // Sorts, and refuses two tensors of the same name.
  Result<TensorStore> finish();

 private:
  std::shared_ptr<TensorStore::State> state_;
};

// Bytes of a tensor whose dims are all >= 0; empty where that overflows 63 bits or the innermost dimension is no
// multiple of the block.
std::optional<std::uint64_t> checked_bytes(DType type, const Shape& shape);

// One tensor's place in a file, to check that none overlap.
struct Extent {
  std::uint64_t begin;
  std::uint64_t end;
  std::string_view name;
};
// The error names two tensors that overlap.
Status check_disjoint(std::vector<Extent> extents, std::string_view source);

}  // namespace xgen::weights
