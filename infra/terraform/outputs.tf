output "root" {
  description = "GLEFLD_ROOT."
  value       = "s3://${aws_s3_bucket.root.bucket}"
}

output "role_arns" {
  description = "Role of each service account: the annotation eks.amazonaws.com/role-arn."
  value       = { for name, role in aws_iam_role.work : name => role.arn }
}
