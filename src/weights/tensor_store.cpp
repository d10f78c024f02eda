#include "weights/tensor_store.h"

#include <algorithm>

#include "weights/tensor_store_builder.h"

namespace xgen::weights {

std::span<const NamedTensor> TensorStore::tensors() const {
  return state_ ? std::span<const NamedTensor>(state_->tensors) : std::span<const NamedTensor>();
}

const TensorView* TensorStore::find(std::string_view name) const {
  const std::span<const NamedTensor> all = tensors();
  const auto it = std::lower_bound(all.begin(), all.end(), name,
                                   [](const NamedTensor& tensor, std::string_view n) { return tensor.name < n; });
  return it != all.end() && it->name == name ? &it->view : nullptr;
}

Result<TensorView> TensorStore::get(std::string_view name) const {
  if (const TensorView* view = find(name)) return *view;
  return make_error(ErrorCode::not_found, std::string(source()) + ": there is no tensor \"" + std::string(name) + "\"");
}

const Metadata& TensorStore::metadata() const {
  static const Metadata none;
  return state_ ? state_->metadata : none;
}

std::size_t TensorStore::bytes() const { return state_ ? state_->bytes : 0; }

std::string_view TensorStore::source() const { return state_ ? std::string_view(state_->source) : std::string_view(); }

Result<TensorStore> TensorStoreBuilder::finish() {
  auto& all = state_->tensors;
  std::sort(all.begin(), all.end(), [](const NamedTensor& a, const NamedTensor& b) { return a.name < b.name; });
  const auto twice = std::adjacent_find(all.begin(), all.end(),
                                        [](const NamedTensor& a, const NamedTensor& b) { return a.name == b.name; });
  if (twice != all.end()) {
    return make_error(ErrorCode::invalid_argument,
                      state_->source + ": tensor \"" + std::string(twice->name) + "\" is there twice");
  }
  state_->bytes = 0;
  for (const NamedTensor& tensor : all) state_->bytes += tensor.view.bytes();
  TensorStore store;
  store.state_ = std::move(state_);
  return store;
}

std::optional<std::uint64_t> checked_bytes(DType type, const Shape& shape) {
  const DTypeInfo& info = dtype_info(type);
  constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t elements = 1;
  for (int i = 0; i < shape.rank; ++i) {
    if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(shape[i]), &elements) || elements > kMax / 8)
      return {};
  }
  const std::uint64_t cols = shape.rank == 0 ? 1 : static_cast<std::uint64_t>(shape[shape.rank - 1]);
  if (cols % info.block != 0) return {};
  return elements / info.block * info.block_bytes;
}

Status check_disjoint(std::vector<Extent> extents, std::string_view source) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].begin < extents[i - 1].end) {
      return make_error(ErrorCode::invalid_argument, std::string(source) + ": tensors \"" +
                                                         std::string(extents[i - 1].name) + "\" and \"" +
                                                         std::string(extents[i].name) + "\" overlap");
    }
  }
  return {};
}

}  // namespace xgen::weights
