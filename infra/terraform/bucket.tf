# One bucket: raw/ photos/ weights/ (yours), data/ (ingest), runs/ (train), predictions/ (infer),
# models/ (copies of MLflow's models, by train), mlflow/ (the server).
resource "aws_s3_bucket" "root" {
  bucket = var.bucket
}

resource "aws_s3_bucket_public_access_block" "root" {
  bucket                  = aws_s3_bucket.root.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "root" {
  bucket = aws_s3_bucket.root.id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "root" {
  bucket = aws_s3_bucket.root.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "root" {
  bucket = aws_s3_bucket.root.id
  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "root" {
  bucket     = aws_s3_bucket.root.id
  depends_on = [aws_s3_bucket_versioning.root]

  rule {
    id     = "unfinished-uploads" # what a killed task leaves is stored, and paid for, unseen
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }

  dynamic "rule" {
    for_each = var.datasets
    content {
      id     = "rejects-${rule.value}"
      status = "Enabled"
      filter {
        prefix = "data/${rule.value}/_rejects/"
      }
      expiration {
        days = var.rejects_days
      }
    }
  }

  rule {
    id     = "old-versions"
    status = "Enabled"
    filter {}
    noncurrent_version_expiration {
      noncurrent_days = var.old_versions_days
    }
    expiration {
      expired_object_delete_marker = true
    }
  }
}

resource "aws_s3_bucket_policy" "root" {
  bucket     = aws_s3_bucket.root.id
  depends_on = [aws_s3_bucket_public_access_block.root]

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.root.arn, "${aws_s3_bucket.root.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
}
