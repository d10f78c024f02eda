#include "base/file_set.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "base/split_name.h"

namespace xgen {
namespace {

namespace fs = std::filesystem;

bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

Error bad_name(std::string_view name) {
  return make_error(ErrorCode::invalid_argument, "not a file name: '" + std::string(name) + "'");
}

// Files of one folder, limited to `names`.
class FolderFiles final : public FileSet {
 public:
  FolderFiles(std::string title, fs::path folder, std::vector<std::string> names)
      : title_(std::move(title)), folder_(std::move(folder)), names_(std::move(names)) {
    std::sort(names_.begin(), names_.end());
  }
  std::vector<std::string> list() const override { return names_; }
  bool has(std::string_view name) const override { return std::binary_search(names_.begin(), names_.end(), name); }
  Result<Bytes> open(std::string_view name) const override {
    if (!is_plain_name(name)) return bad_name(name);
    if (!has(name)) return make_error(ErrorCode::not_found, describe(name) + ": no such file");
    return map_file((folder_ / std::string(name)).string(), damage());
  }
  std::string describe(std::string_view name) const override {
    return name.empty() ? title_ : (folder_ / std::string(name)).string();
  }

 private:
  std::string title_;
  fs::path folder_;
  std::vector<std::string> names_;
};

class EmbeddedFiles final : public FileSet {
 public:
  EmbeddedFiles(std::string title, std::vector<EmbeddedFile> files)
      : title_(std::move(title)), files_(std::move(files)) {
    std::sort(files_.begin(), files_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  }
  std::vector<std::string> list() const override {
    std::vector<std::string> names;
    for (const EmbeddedFile& file : files_) names.emplace_back(file.name);
    return names;
  }
  bool has(std::string_view name) const override { return find(name) != nullptr; }
  Result<Bytes> open(std::string_view name) const override {
    const EmbeddedFile* file = find(name);
    if (file == nullptr) return make_error(ErrorCode::not_found, describe(name) + ": no such file");
    return Bytes{std::as_bytes(std::span(file->data.data(), file->data.size())), nullptr};
  }
  std::string describe(std::string_view name) const override {
    return name.empty() ? title_ : title_ + "/" + std::string(name);
  }

 private:
  const EmbeddedFile* find(std::string_view name) const {
    for (const EmbeddedFile& file : files_) {
      if (file.name == name) return &file;
    }
    return nullptr;
  }
  std::string title_;
  std::vector<EmbeddedFile> files_;
};
}  // namespace

Result<std::shared_ptr<const FileSet>> open_files(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found || error) {
    return make_error(ErrorCode::not_found, path + ": " + (error ? error.message() : "no such file or folder"));
  }
  if (fs::is_directory(status)) {
    std::vector<std::string> names;
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      std::error_code ignored;
      if (it->is_regular_file(ignored)) names.push_back(it->path().filename().string());
    }
    if (error) return make_error(ErrorCode::invalid_argument, path + ": " + error.message());
    return std::shared_ptr<const FileSet>(std::make_shared<FolderFiles>(path, path, std::move(names)));
  }
  if (!fs::is_regular_file(status)) {
    return make_error(ErrorCode::invalid_argument, path + ": neither a folder nor a regular file");
  }
  const fs::path file(path);
  std::vector<std::string> names;
  for (std::string& name : all_parts(file.filename().string())) {
    if (fs::is_regular_file(file.parent_path() / name, error)) names.push_back(std::move(name));
  }
  return std::shared_ptr<const FileSet>(std::make_shared<FolderFiles>(path, file.parent_path(), std::move(names)));
}

std::shared_ptr<const FileSet> embedded_files(std::string title, std::vector<EmbeddedFile> files) {
  return std::make_shared<EmbeddedFiles>(std::move(title), std::move(files));
}

}  // namespace xgen
