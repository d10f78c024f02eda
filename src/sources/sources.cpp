#include "sources/sources.h"

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/units.h"
#include "sources/hub.h"
#include "sources/s3.h"

namespace xgen::sources {
namespace {

constexpr std::uint64_t kSpareDisk = std::uint64_t{16} << 20;  // left free beside what is downloaded

// Of the Hub they are known before anything is asked.
std::string ref_name(const RemoteSource& source) {
  if (const auto* hub = std::get_if<HubSource>(&source)) return hub->revision;
  return to_hex(digest_of(DigestKind::sha256, std::get<S3Source>(source).prefix));
}

// A folder's path, or a file's in it, as choose_files is asked for it.
std::string wanted_path(const RemoteSource& source) {
  if (const auto* hub = std::get_if<HubSource>(&source)) return hub->path;
  return s3_place(std::get<S3Source>(source)).path;
}

std::string folder_text(std::string_view text) {
  std::string out(text);
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return std::isalnum(c) == 0 && c != '.' && c != '-'; }, '_');
  return out;
}

std::uint64_t allocated(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 ? static_cast<std::uint64_t>(info.st_blocks) * 512 : 0;
}

}  // namespace

// What a pull has found out and is about to do.
struct Sources::Plan {
  std::string where;  // the source, for messages
  CacheFolder cache;
  std::string snapshot;
  std::string ref;
  Choice choice;
  std::string base;  // of S3: what comes before the files' paths in their keys
  std::function<Status(RemoteFile&, const std::stop_token&)> describe;
  std::function<Remote(const RemoteFile&)> remote;
};

Sources::Sources(Settings settings) : settings_(std::move(settings)) {}
Sources::~Sources() = default;

http::Client& Sources::client() {
  std::lock_guard lock(mutex_);
  if (client_ == nullptr) client_ = std::make_unique<http::Client>();
  return *client_;
}

CacheFolder Sources::cache_of(const RemoteSource& source) const {
  if (const auto* hub = std::get_if<HubSource>(&source)) return {settings_.hub.cache, hub_folder_name(hub->repo)};
  const std::string host =
      settings_.s3.endpoint.empty() ? "aws" : settings_.s3.endpoint.substr(settings_.s3.endpoint.find("://") + 3);
  return {settings_.s3.cache, folder_text(host) + "--" + std::get<S3Source>(source).bucket};
}

std::optional<std::string> Sources::snapshot_of(const RemoteSource& source) const {
  const std::string ref = ref_name(source);
  if (std::holds_alternative<HubSource>(source) && is_commit(ref)) return ref;
  return cache_of(source).ref(ref);
}

Result<Located> Sources::locate(std::string_view text) const {
  const auto source = parse_remote_source(text);
  if (!source) return source.error();
  const CacheFolder cache = cache_of(*source);
  const auto snapshot = snapshot_of(*source);
  const std::string where = std::string(text) + " (cache: " + cache.path() + ")";
  if (!snapshot) return make_error(ErrorCode::not_found, where + ": it is not in the cache");
  const auto choice = choose_local(cache, *snapshot, wanted_path(*source), where);
  if (!choice) return choice.error();
  return Located{cache.snapshot_path(*snapshot) + (choice->open.empty() ? "" : "/" + choice->open), *snapshot};
}

Result<std::string> Sources::folder(std::string_view text) const {
  const auto source = parse_remote_source(text);
  if (!source) return source.error();
  return cache_of(*source).path();
}

Status Sources::may_pull(std::string_view text) const {
  const auto source = parse_remote_source(text);
  if (!source) return source.error();
  if (std::holds_alternative<S3Source>(*source) || !settings_.hub.offline) return {};
  return make_error(ErrorCode::unavailable, "HF_HUB_OFFLINE is set, so nothing is downloaded");
}

std::string Sources::version(std::string_view text) const {
  const auto located = locate(text);
  if (!located) return {};
  std::lock_guard lock(mutex_);
  const auto it = fetched_.find(std::string(text));
  return it != fetched_.end() && it->second == located->version ? std::string() : located->version;
}

Result<Sources::Plan> Sources::plan(const RemoteSource& source, const std::stop_token& stop) {
  Plan plan{{}, cache_of(source), {}, ref_name(source), {}, {}, nullptr, nullptr};
  std::vector<RemoteFile> files;
  if (const auto* from_hub = std::get_if<HubSource>(&source)) {
    auto hub = std::make_shared<Hub>(client(), settings_.hub, settings_.transfer.patience);
    plan.where = "hf://" + from_hub->repo;
    auto commit = hub->commit(*from_hub, stop);
    if (!commit) return std::move(commit).error();
    auto listed = hub->list(*from_hub, *commit, stop);
    if (!listed) return std::move(listed).error();
    files = *std::move(listed);
    plan.snapshot = *commit;
    plan.remote = [hub, from = *from_hub, commit = *commit](const RemoteFile& file) {
      return hub->remote(from, commit, file);
    };
  } else {
    const auto& from_s3 = std::get<S3Source>(source);
    auto s3 = std::make_shared<S3>(client(), settings_.s3, settings_.transfer.patience);
    plan.where = "s3://" + from_s3.bucket + (from_s3.prefix.empty() ? "" : "/" + from_s3.prefix);
    auto listed = s3->list(from_s3, stop);
    if (!listed) return std::move(listed).error();
    files = *std::move(listed);
    plan.describe = [s3, from_s3](RemoteFile& file, const std::stop_token& token) {
      return s3->describe(from_s3, file, token);
    };
    plan.remote = [s3, from_s3](const RemoteFile& file) { return s3->remote(from_s3, file); };
    plan.base = s3_place(from_s3).base;
  }
  auto choice = choose_files(files, wanted_path(source), plan.where);
  if (!choice) return std::move(choice).error();
  plan.choice = *std::move(choice);
  if (std::holds_alternative<S3Source>(source)) {
    std::string all;
    for (const RemoteFile& file : plan.choice.files)
      all += file.path + '\0' + file.id + '\0' + std::to_string(file.size) + '\n';
    plan.snapshot = to_hex(digest_of(DigestKind::sha256, all));
  }
  return plan;
}

Result<Pulled> Sources::download(Plan plan, const OnProgress& progress, const std::stop_token& stop) {
  CacheFolder& cache = plan.cache;
  if (Status made = cache.prepare(); !made) return std::move(made).error();
  // An object of S3 is named by its key, too: an ETag alone need not be its content's own.
  const bool by_content = plan.describe == nullptr;
  const auto blob_id = [&](const RemoteFile& file) {
    return by_content ? file.id : to_hex(digest_of(DigestKind::sha256, plan.base + file.path + '\0' + file.id));
  };
  const auto part_path = [&](const RemoteFile& file) { return cache.blob_path(blob_id(file)) + ".xgen.incomplete"; };

  Pulled pulled;
  std::vector<RemoteFile*> missing;
  std::uint64_t needed = 0;
  Progress shown;
  for (RemoteFile& file : plan.choice.files) {
    ++pulled.files;
    pulled.bytes += file.size;
    if (cache.has_blob(blob_id(file), file.size)) continue;
    missing.push_back(&file);
    shown.total += file.size;
    needed += file.size - std::min(file.size, allocated(part_path(file)));
  }
  const std::uint64_t room = free_bytes(cache.path());
  if (needed > 0 && needed + kSpareDisk > room) {
    return make_error(ErrorCode::unavailable, plan.where + ": " + cache.path() + " has " + format_bytes(room) +
                                                  " free, but " + format_bytes(needed) + " are to be downloaded");
  }

  std::uint64_t before = 0;
  for (RemoteFile* file : missing) {
    shown.file = file->path;
    const auto tell = [&](std::uint64_t bytes, bool waiting) {
      shown.done = before + bytes;
      shown.waiting = waiting;
      if (progress) progress(shown);
    };
    tell(0, false);
    const std::string id = blob_id(*file);
    auto lock = cache.lock(id, stop, [&] { tell(0, true); });
    if (!lock) return std::move(lock).error();
    if (!cache.has_blob(id, file->size)) {
      if (plan.describe) {
        if (Status described = plan.describe(*file, stop); !described) return std::move(described).error();
        if (file->expectations.empty())
          log::warn("sources", "a file can be checked by its size only",
                    {{"source", plan.where}, {"file", file->path}});
      }
      Status outcome = transfer(
          client(), plan.remote(*file), *file, part_path(*file), cache.blob_path(id), settings_.transfer,
          [&](std::uint64_t bytes) { tell(bytes, false); }, stop);
      if (!outcome) return std::move(outcome).error();
      pulled.downloaded += file->size;
    }
    before += file->size;
  }

  // What is opened first comes last: a snapshot that has it has all.
  const std::string folder = plan.choice.open.empty() ? "" : plan.choice.open + "/";
  const std::string last = plan.choice.open.ends_with(".gguf") ? plan.choice.open : folder + "config.json";
  std::stable_partition(plan.choice.files.begin(), plan.choice.files.end(),
                        [&](const RemoteFile& file) { return file.path != last; });
  for (const RemoteFile& file : plan.choice.files)
    if (Status linked = cache.link(plan.snapshot, file.path, blob_id(file)); !linked) return std::move(linked).error();
  if (plan.ref != plan.snapshot)
    if (Status set = cache.set_ref(plan.ref, plan.snapshot); !set) return std::move(set).error();
  pulled.located = {cache.snapshot_path(plan.snapshot) + (plan.choice.open.empty() ? "" : "/" + plan.choice.open),
                    plan.snapshot};
  return pulled;
}

Result<Pulled> Sources::pull(std::string_view text, const OnProgress& progress, const std::stop_token& stop) {
  const auto source = parse_remote_source(text);
  if (!source) return source.error();
  if (Status may = may_pull(text); !may) {
    auto located = locate(text);
    if (!located) return make_error(located.error().code, located.error().message + "; " + may.error().message);
    return Pulled{*std::move(located), 0, 0, 0};
  }
  if (progress) progress({});
  auto made = plan(*source, stop);
  if (!made) return std::move(made).error();
  return download(*std::move(made), progress, stop);
}

Result<Located> Sources::fetch(std::string_view text, const OnProgress& progress, const std::stop_token& stop) {
  auto located = locate(text);
  if (located) return located;
  if (located.error().code != ErrorCode::not_found) return located;
  auto pulled = pull(text, progress, stop);
  if (!pulled) return std::move(pulled).error();
  log::info("sources", "downloaded a model",
            {{"source", std::string(text)}, {"path", pulled->located.path}, {"bytes", pulled->downloaded}});
  std::lock_guard lock(mutex_);
  fetched_[std::string(text)] = pulled->located.version;
  return std::move(pulled->located);
}

}  // namespace xgen::sources
